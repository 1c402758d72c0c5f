"""What can be said about quantization-aware training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.train_op import split_patterns

__all__ = ["Quantization"]


@dataclass(frozen=True)
class Quantization:
    """How a model is trained for int8.

    Attributes:
        start_step: global step that the float training ends at and the quantization-aware one begins; 0 quantizes from
            the first step, which is right when training starts from the checkpoint of a float run.
        per_channel: one scale for each output channel of a convolution's kernel, not one for the whole kernel. Kernels
            of matrix products always have one, because TensorFlow Lite's converter takes no more.
        exclude: regular expressions; a layer stays in floating point if one is found in the name of its kernel's
            variable, such as `LeNet/conv1/weights`.
        range_decay: decay of the moving averages that learn the ranges of activations.
        learning_rate_scale: what the optimizer's learning rate is multiplied by while it is quantized: a fine-tuning
            wants smaller steps than the training before it.
    """

    start_step: int = 0
    per_channel: bool = True
    exclude: Sequence[str] = ()
    range_decay: float = 0.99
    learning_rate_scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            UsageError: a number out of its range, or a pattern that is not a regular expression.
        """
        if isinstance(self.start_step, bool) or not isinstance(self.start_step, int) or self.start_step < 0:
            raise UsageError(f"quantization start_step={self.start_step!r}: expected a step, 0 or later")
        if not 0 <= self.range_decay < 1:
            raise UsageError(f"quantization range_decay={self.range_decay!r}: expected a number from 0 to below 1")
        if not 0 < self.learning_rate_scale < math.inf:
            raise UsageError(
                f"quantization learning_rate_scale={self.learning_rate_scale!r}: expected a number above 0; 1 is off"
            )
        for pattern in self.exclude:
            split_patterns(pattern)
