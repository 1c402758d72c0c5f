"""Handlers for coordinates that an example has several of: boxes and points, per image or per frame of a sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.contrib.slim.item_handler import ItemHandler, named_keys
from moxserve.tensorflow.executor.env import tf

__all__ = ["BoundingBox", "BoundingBoxSequence", "KeypointsSequence", "NumBoxesSequence"]

_BOX = ("ymin", "xmin", "ymax", "xmax")
_POINT = ("y", "x")


class BoundingBox(ItemHandler):
    """The boxes of an image: `[boxes, 4]`, each ymin, xmin, ymax, xmax.

    Args:
        keys: the four features, in that order.
        prefix: put before each key.

    Raises:
        UsageError: there are not four keys.
    """

    def __init__(self, keys: Sequence[str] | None = None, prefix: str = "") -> None:
        super().__init__(named_keys("BoundingBox", keys, _BOX, prefix))

    def tensors_to_item(self, keys_to_tensors: Mapping[str, Any]) -> Any:
        """Make the item; see ItemHandler."""
        tensors = [keys_to_tensors[key] for key in self.keys]
        return tf.stack([t.values if isinstance(t, tf.SparseTensor) else t for t in tensors], axis=-1)


class _CoordinateSequence(ItemHandler):
    """Coordinates of each frame: `[frames, most of a frame, coordinates]`.

    Args:
        keys: a sparse feature `[frames, of a frame]` for each coordinate.
        prefix: put before each key.
        return_dense: fill up frames that have fewer; otherwise the item is a SparseTensor.
        default_value: what is filled in.

    Raises:
        UsageError: there are not as many keys as coordinates.
    """

    _names: tuple[str, ...] = ()

    def __init__(
        self,
        keys: Sequence[str] | None = None,
        prefix: str | None = None,
        return_dense: bool = True,
        default_value: float = -1.0,
    ) -> None:
        super().__init__(named_keys(type(self).__name__, keys, self._names, prefix))
        self._return_dense, self._default_value = return_dense, default_value

    def tensors_to_item(self, keys_to_tensors: Mapping[str, Any]) -> Any:
        """Make the item; see ItemHandler."""
        parts = [tf.sparse.expand_dims(keys_to_tensors[key], axis=-1) for key in self.keys]
        joined = tf.sparse.concat(2, parts)
        return tf.sparse.to_dense(joined, self._default_value) if self._return_dense else joined


class BoundingBoxSequence(_CoordinateSequence):
    """The boxes of each frame: `[frames, most boxes, 4]`; see the base."""

    _names = _BOX


class KeypointsSequence(_CoordinateSequence):
    """The points of each frame: `[frames, most points, 2]`, each y and x; see the base."""

    _names = _POINT


class NumBoxesSequence(ItemHandler):
    """How many boxes each frame has: `[frames] int64`.

    Args:
        keys: sparse features `[frames, boxes]`; the first one is counted.
        check_consistency: fail where another has another number.

    Raises:
        UsageError: there are no keys.
    """

    def __init__(self, keys: Sequence[str] | None = None, check_consistency: bool = True) -> None:
        if not keys:
            raise UsageError("NumBoxesSequence needs keys, such as ['ymin', 'xmin', 'ymax', 'xmax']")
        super().__init__(keys)
        self._check_consistency = check_consistency

    def tensors_to_item(self, keys_to_tensors: Mapping[str, Any]) -> Any:
        """Make the item; see ItemHandler.

        Raises:
            UsageError: a feature is not sparse.
        """
        counts = [self._count(key, keys_to_tensors[key]) for key in self.keys]
        others = counts[1:] if self._check_consistency else []
        checks = [tf.debugging.assert_equal(counts[0], other) for other in others]
        with tf.control_dependencies([check for check in checks if check is not None]):
            return tf.identity(counts[0])

    def _count(self, key: str, tensor: Any) -> Any:
        if not isinstance(tensor, tf.SparseTensor):
            raise UsageError(f"NumBoxesSequence: feature {key!r} is not sparse; declare it a tf.io.VarLenFeature")
        # The last box of a frame has the highest column; frames without one have none.
        columns = tensor.indices[:, 1] + 1
        frames = tensor.dense_shape[0]
        highest = tf.math.unsorted_segment_max(columns, tensor.indices[:, 0], frames)
        return tf.maximum(highest, 0)
