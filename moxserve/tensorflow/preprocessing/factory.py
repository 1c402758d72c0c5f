"""Augmentation by the name of a network."""

from __future__ import annotations

import dataclasses
from typing import Any

from moxserve.errors import UsageError, did_you_mean
from moxserve.tensorflow.executor.spec import ModeKeys
from moxserve.tensorflow.preprocessing.base import Augmentation, Output
from moxserve.tensorflow.preprocessing.cifarnet import CifarnetOptions, CifarnetPreprocessing
from moxserve.tensorflow.preprocessing.inception import InceptionOptions, InceptionPreprocessing
from moxserve.tensorflow.preprocessing.keys import default_image_size, preprocessing_of
from moxserve.tensorflow.preprocessing.lenet import LenetOptions, LenetPreprocessing
from moxserve.tensorflow.preprocessing.pvanet import PvanetPreprocessing
from moxserve.tensorflow.preprocessing.vgg import VggOptions, VggPreprocessing

__all__ = ["get_data_augmentation_fn"]

_CLASSES: dict[str, tuple[Any, Any]] = {
    "vgg_preprocessing": (VggPreprocessing, VggOptions),
    "inception_preprocessing": (InceptionPreprocessing, InceptionOptions),
    "cifarnet_preprocessing": (CifarnetPreprocessing, CifarnetOptions),
    "lenet_preprocessing": (LenetPreprocessing, LenetOptions),
    "pvanet_preprocessing": (PvanetPreprocessing, VggOptions),
}


def get_data_augmentation_fn(
    name: str, run_mode: str, output_height: int | None = None, output_width: int | None = None, **kwargs: Any
) -> Augmentation:
    """Return the augmentation of a network: a function of one image `[height, width, channels]`.

    Args:
        name: of the network, such as `resnet_v1_50` (see `PreprocessingKeys`).
        run_mode: `ModeKeys.TRAIN` augments at random; EVAL, PREDICT and EXPORT do not.
        output_height: of the result, in pixels; None: the size that the network was made for. 0 in both: inception's
            evaluation does not resize.
        output_width: likewise.
        **kwargs: options of the network's family; see docs/augmentation.md.

    Returns:
        The function: image -> `[output_height, output_width, channels] float32`. It works in a graph, eagerly, and in
        `tf.data.Dataset.map`; in TRAIN it has `geometry` and `finish` for readers that crop while they decode.

    Raises:
        UsageError: the network, the mode or an option does not exist, or a value makes no sense.
    """
    family = preprocessing_of(name)
    if run_mode not in ModeKeys.ALL:
        raise UsageError(f"run_mode={run_mode!r} is no mode; {did_you_mean(str(run_mode).upper(), ModeKeys.ALL)}")
    size = default_image_size(name)
    output = Output(
        height=size if output_height is None else output_height,
        width=size if output_width is None else output_width,
        training=run_mode == ModeKeys.TRAIN,
    )
    augmentation, options = _CLASSES[family]
    known = {field.name for field in dataclasses.fields(options)}
    for option in kwargs:
        if option not in known:
            raise UsageError(f"{name}: {family} has no option {option!r}; {did_you_mean(option, known)}")
    made: Augmentation = augmentation(output, options(**kwargs))
    return made
