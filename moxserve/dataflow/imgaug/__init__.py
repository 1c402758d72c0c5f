"""Augmentation of NumPy images for data flows, with tensorpack's names.

An augmentor draws (`get_transform`), the transform that it makes is applied to images and coordinates. `base` has the
augmentors' base, `transform` the transforms, `pixels` what all share; the other modules have the augmentors.
"""

from moxserve.dataflow.imgaug.base import (
    Augmentor,
    AugmentorList,
    ImageAugmentor,
    ImagePlaceholder,
    PhotometricAugmentor,
)
from moxserve.dataflow.imgaug.color import (
    Brightness,
    BrightnessScale,
    Clip,
    Contrast,
    Gamma,
    Hue,
    Lighting,
    MeanVarianceNormalize,
    MinMaxNormalize,
    Saturation,
)
from moxserve.dataflow.imgaug.convert import ColorSpace, Grayscale, ToFloat32, ToUint8
from moxserve.dataflow.imgaug.crop import (
    CenterCrop,
    GoogleNetRandomCropAndResize,
    GoogleNetResize,
    RandomCrop,
    RandomCropRandomShape,
    RandomCutout,
)
from moxserve.dataflow.imgaug.deform import GaussianDeform
from moxserve.dataflow.imgaug.external import Albumentations, IAAugmentor
from moxserve.dataflow.imgaug.geometry import (
    Affine,
    Flip,
    RandomResize,
    Resize,
    ResizeShortestEdge,
    Rotation,
    RotationAndCropValid,
    Shift,
    Transpose,
)
from moxserve.dataflow.imgaug.meta import Identity, MapImage, RandomApplyAug, RandomChooseAug, RandomOrderAug
from moxserve.dataflow.imgaug.noise import GaussianBlur, GaussianNoise, JpegNoise, SaltPepperNoise
from moxserve.dataflow.imgaug.paste import BackgroundFiller, CenterPaste, ConstantBackgroundFiller, RandomPaste
from moxserve.dataflow.imgaug.transform import (
    BaseTransform,
    CropTransform,
    FlipTransform,
    NoOpTransform,
    PhotometricTransform,
    ResizeTransform,
    Transform,
    TransformFactory,
    TransformList,
    TransposeTransform,
    WarpAffineTransform,
)

__all__ = [
    "Affine",
    "Albumentations",
    "Augmentor",
    "AugmentorList",
    "BackgroundFiller",
    "BaseTransform",
    "Brightness",
    "BrightnessScale",
    "CenterCrop",
    "CenterPaste",
    "Clip",
    "ColorSpace",
    "ConstantBackgroundFiller",
    "Contrast",
    "CropTransform",
    "Flip",
    "FlipTransform",
    "Gamma",
    "GaussianBlur",
    "GaussianDeform",
    "GaussianNoise",
    "GoogleNetRandomCropAndResize",
    "GoogleNetResize",
    "Grayscale",
    "Hue",
    "IAAugmentor",
    "Identity",
    "ImageAugmentor",
    "ImagePlaceholder",
    "JpegNoise",
    "Lighting",
    "MapImage",
    "MeanVarianceNormalize",
    "MinMaxNormalize",
    "NoOpTransform",
    "PhotometricAugmentor",
    "PhotometricTransform",
    "RandomApplyAug",
    "RandomChooseAug",
    "RandomCrop",
    "RandomCropRandomShape",
    "RandomCutout",
    "RandomOrderAug",
    "RandomPaste",
    "RandomResize",
    "Resize",
    "ResizeShortestEdge",
    "ResizeTransform",
    "Rotation",
    "RotationAndCropValid",
    "SaltPepperNoise",
    "Saturation",
    "Shift",
    "ToFloat32",
    "ToUint8",
    "Transform",
    "TransformFactory",
    "TransformList",
    "Transpose",
    "TransposeTransform",
    "WarpAffineTransform",
]
