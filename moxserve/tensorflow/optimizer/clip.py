"""`clip`: gradients that are too long are cut."""

from __future__ import annotations

from functools import partial
from typing import Any

from moxserve.errors import UsageError, did_you_mean
from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.optimizer.wrapper import OptimizerWrapper, Pairs, map_values, summed

__all__ = ["CLIP_TYPES", "Clip"]

CLIP_TYPES = ("norm", "global_norm", "value")


class Clip(OptimizerWrapper):
    """Limits the length of gradients.

    Inside of `batch_gradients` it limits the mean of all batches, outside of it each batch's gradients. The slices that
    a sparse gradient has for one row are summed before.

    Args:
        optimizer: the one inside.
        limit: the largest length, or the largest absolute value.
        clip_type: `norm`: each variable's gradient by its own length; `global_norm`: all together, so that the
            direction stays; `value`: each element.

    Raises:
        UsageError: the limit is not positive, or the type unknown.
    """

    kind = "clip"

    def __init__(self, optimizer: Any, limit: float, clip_type: str = "global_norm") -> None:
        super().__init__(optimizer)
        if clip_type not in CLIP_TYPES:
            raise UsageError(f"clip: unknown clip_type {clip_type!r}; {did_you_mean(str(clip_type), CLIP_TYPES)}")
        if not limit > 0:
            raise UsageError(f"clip: limit={limit!r}, expected a number above 0")
        self._limit, self._type = limit, clip_type

    def _change(self, pairs: Pairs) -> Pairs:
        # The squares of a norm soon leave half precision, and one norm may be of gradients of several dtypes.
        gradients = [map_values(summed(gradient), _wide) for gradient, _ in pairs]
        if self._type == "global_norm":
            clipped, _ = tf.clip_by_global_norm(gradients, self._limit)
        elif self._type == "norm":
            clipped = [tf.clip_by_norm(gradient, self._limit) for gradient in gradients]
        else:
            clipped = [map_values(g, lambda x: tf.clip_by_value(x, -self._limit, self._limit)) for g in gradients]
        return [
            (map_values(gradient, partial(tf.cast, dtype=given.dtype)), variable)
            for gradient, (given, variable) in zip(clipped, pairs, strict=True)
        ]


def _wide(values: Any) -> Any:
    return tf.cast(values, tf.float32) if values.dtype in (tf.float16, tf.bfloat16) else values
