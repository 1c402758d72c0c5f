"""Whether a tensorpack-named layer trains: said by the running `model_fn`'s mode, or by a `TowerContext` outside it."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.variables import TowerContext as Build

__all__ = ["TowerContext", "get_current_tower_context"]


class TowerContext:
    """Where tensorpack-named layers are built outside `mox.run`.

    ```python
    with TowerContext("", is_training=True):
        logits = model(images)
    with tf1.variable_scope("", reuse=True), TowerContext("eval", is_training=False):
        evaluated = model(images)
    ```

    Attributes:
        ns_name: name scope of the operations made in it; "" for none.
        vs_name: name of a variable scope of its own; "" for none.
        is_training: whether dropout drops, and batch norms take the statistics of the batch.
        index: which of several towers that train; only the first one updates moving averages.
    """

    _active = threading.local()

    def __init__(self, tower_name: str, is_training: bool, index: int = 0, vs_name: str = "") -> None:
        self.ns_name = tower_name
        self.vs_name = vs_name
        self.is_training = bool(is_training)
        self.index = index
        self._scopes: ExitStack | None = None

    @property
    def is_main_training_tower(self) -> bool:
        """Whether it trains, and is the first that does."""
        return self.is_training and self.index == 0

    @classmethod
    def current(cls) -> TowerContext | None:
        """The context that is entered, None outside."""
        context: TowerContext | None = getattr(cls._active, "context", None)
        return context

    def __enter__(self) -> TowerContext:
        outer = self.current()
        if outer is not None:
            raise UsageError(f"TowerContext({self.ns_name!r}) inside TowerContext({outer.ns_name!r}); leave that first")
        scope = self.vs_name or tf1.get_variable_scope()
        reuse = True if self.is_training and self.index > 0 and not self.vs_name else None
        with ExitStack() as scopes:
            scopes.enter_context(tf1.variable_scope(scope, reuse=reuse, auxiliary_name_scope=False))
            if self.ns_name:
                scopes.enter_context(tf1.name_scope(self.ns_name + "/"))
            self._scopes = scopes.pop_all()
        self._active.context = self
        return self

    def __exit__(self, *failure: Any) -> None:
        self._active.context = None
        if self._scopes is not None:
            self._scopes.close()


def get_current_tower_context() -> TowerContext | None:
    """Return what layers are built for: the entered `TowerContext`, else the running `model_fn`'s.

    None outside both.
    """
    entered, build = TowerContext.current(), Build.current()
    if entered is not None or build is None:
        return entered
    return TowerContext("", build.training, build.index)


def required_tower(layer: str) -> TowerContext:
    """Return what a layer is built for.

    Raises:
        UsageError: nothing says.
    """
    tower = get_current_tower_context()
    if tower is None:
        raise UsageError(
            f"{layer} behaves otherwise in training, and nothing says whether this is one; call it in a model_fn of "
            "mox.run, or under `with TowerContext('', is_training=...):`"
        )
    return tower
