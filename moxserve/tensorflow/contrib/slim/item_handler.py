"""What a handler of an item is: which features it needs, and what it makes of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf

__all__ = ["ItemHandler", "dense", "named_keys"]


class ItemHandler(ABC):
    """Makes one item of the parsed features of an example.

    Args:
        keys: name of a feature, or several.
    """

    def __init__(self, keys: str | Sequence[str]) -> None:
        self._keys = list(keys) if isinstance(keys, (list, tuple)) else [keys]

    @property
    def keys(self) -> list[Any]:
        """Names of the features that the item is made of."""
        return self._keys

    @abstractmethod
    def tensors_to_item(self, keys_to_tensors: Mapping[str, Any]) -> Any:
        """Make the item.

        Args:
            keys_to_tensors: parsed tensors, dense or sparse, by the names of the features.
        """


def dense(tensor: Any) -> Any:
    """Return a tensor as a dense one; what a sparse one leaves out is 0, or empty."""
    return tf.sparse.to_dense(tensor) if isinstance(tensor, tf.SparseTensor) else tensor


def named_keys(owner: str, keys: Sequence[str] | None, default: Sequence[str], prefix: str | None) -> list[str]:
    """Return the names of the features of coordinates.

    Raises:
        UsageError: there are not as many keys as coordinates.
    """
    chosen = list(default if keys is None else keys)
    if len(chosen) != len(default):
        raise UsageError(f"{owner} expects {len(default)} keys ({', '.join(default)}), got {len(chosen)}")
    return [(prefix or "") + key for key in chosen]
