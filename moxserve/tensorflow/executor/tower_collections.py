"""The graph's collections while `model_fn` is called again: what its earlier calls added is out of sight.

So `tf.losses.get_total_loss()`, `tf.get_collection` and, with copies of the variables, `tf.trainable_variables()` are
in each call what they are in the first one. Afterwards the collections hold what the first call added, and what the
session must still initialise or run of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from moxserve.tensorflow.executor.env import tf1

__all__ = ["SAVED_KEYS", "SESSION_COLLECTIONS", "CollectionView"]

SAVED_KEYS = (
    tf1.GraphKeys.GLOBAL_VARIABLES,
    tf1.GraphKeys.TRAINABLE_VARIABLES,
    tf1.GraphKeys.MODEL_VARIABLES,
)
# What the session must initialise or run of every build, also of those that are not the first.
SESSION_COLLECTIONS = frozenset(
    {
        *SAVED_KEYS,
        tf1.GraphKeys.LOCAL_VARIABLES,
        tf1.GraphKeys.TABLE_INITIALIZERS,
        tf1.GraphKeys.QUEUE_RUNNERS,
        tf1.GraphKeys.RESOURCES,
        tf1.GraphKeys.LOCAL_RESOURCES,
    }
)


class CollectionView:
    """What the calls of `model_fn` in one graph see of its collections.

    Args:
        outside: the collections before the first call; None where this is made for the first call.
    """

    def __init__(self, outside: dict[str, list[Any]] | None = None) -> None:
        self._outside = outside
        self._own_variables: dict[str, list[Any]] = {}

    def of_replica(self) -> CollectionView:
        """What the calls for a tower with copies of its own see."""
        return CollectionView(self._outside)

    @contextmanager
    def entered(self, copies: bool, penalties: Sequence[Any]) -> Iterator[None]:
        """One call.

        Args:
            copies: whether the call has variables of its own, and does not see those of others.
            penalties: of variables that an earlier call made, which bring none with them when they are used again.
        """
        graph = tf1.get_default_graph()
        if self._outside is None:
            self._outside = {key: list(items) for key, items in _collections(graph)}
            yield
            return
        hidden = {key: list(items) for key, items in _collections(graph) if copies or key not in SAVED_KEYS}
        for key, items in _collections(graph):
            if key in hidden:
                items[:] = [*self._outside.get(key, ()), *self._own_variables.get(key, ())]
        for penalty in penalties:
            tf1.add_to_collection(tf1.GraphKeys.REGULARIZATION_LOSSES, penalty)
        try:
            yield
        finally:
            self._leave(graph, hidden, copies)

    def _leave(self, graph: Any, hidden: dict[str, list[Any]], copies: bool) -> None:
        """Bring back what was hidden, without what this call added."""
        for key, items in _collections(graph):
            if key in SAVED_KEYS and not copies:
                continue
            if key in SAVED_KEYS:
                known = {id(item) for item in self._outside_of(key)}
                self._own_variables[key] = [item for item in items if id(item) not in known]
            items[:] = hidden.get(key, ())

    def _outside_of(self, key: str) -> list[Any]:
        return (self._outside or {}).get(key, [])


def _collections(graph: Any) -> Iterator[tuple[str, list[Any]]]:
    """The collections that calls add to; TensorFlow's own state is in collections whose keys are no text."""
    for key in graph.get_all_collection_keys():
        if isinstance(key, str) and (key in SAVED_KEYS or key not in SESSION_COLLECTIONS):
            yield key, graph.get_collection_ref(key)
