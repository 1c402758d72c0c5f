"""PVANet's preprocessing: VGG's code with the means of the network's authors, without scaling.

Nothing public tells what MoXing does. The authors' ImageNet definition subtracts 104, 117, 123 from blue, green, red,
and crops at random in training and from the centre in testing; the channels stay red, green, blue here.
"""

from __future__ import annotations

from moxserve.tensorflow.preprocessing.base import Output
from moxserve.tensorflow.preprocessing.vgg import VggOptions, VggPreprocessing

__all__ = ["PvanetPreprocessing"]


class PvanetPreprocessing(VggPreprocessing):
    """`VggPreprocessing` with PVANet's means.

    Args:
        output: size and mode.
        options: sizes before the crop.
    """

    def __init__(self, output: Output, options: VggOptions) -> None:
        super().__init__(output, options, means=(123.0, 117.0, 104.0), family="pvanet_preprocessing")
