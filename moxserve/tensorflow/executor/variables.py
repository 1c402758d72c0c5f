"""Variables of a model that is built more than once in one graph: who created them, who touched them, under which
dtype.

Two ways of making variables must share them between builds. `get_variable` (with `tf.compat.v1.layers`) is covered by
variable-scope reuse. Keras layers and plain `tf.Variable` ignore reuse: `VariablePlan` hands the k-th created variable
out again. `TowerContext` remembers which of them one build used, which is what `mox.get_collection` answers from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf, tf1

__all__ = ["TowerContext", "VariablePlan", "get_collection", "var_scope"]

_VARIABLE_KEYS = (
    tf1.GraphKeys.GLOBAL_VARIABLES,
    tf1.GraphKeys.TRAINABLE_VARIABLES,
    tf1.GraphKeys.MODEL_VARIABLES,
    tf1.GraphKeys.LOCAL_VARIABLES,
)


class VariablePlan:
    """The variables of one `model_fn` in the order of creation, replayed in every later build of the same graph.

    Those of `get_variable` are left out: variable scopes share them by name.
    """

    def __init__(self) -> None:
        self.variables: list[Any] = []
        self.penalties: list[Any] = []  # REGULARIZATION_LOSSES of the first build
        self.optional: list[Any] = []  # what a training may start without, because it was not there before
        self._next: int | None = None  # None while the first build records

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The first build: every variable made inside is remembered."""
        with tf1.variable_creator_scope(self._create):
            yield

    @contextmanager
    def replaying(self, mode: str) -> Iterator[None]:
        """A later build: variables made inside are the ones remembered, in order.

        Args:
            mode: the mode of this build, for the message.

        Raises:
            ModelSpecError: the build makes another number of variables, or one of another shape.
        """
        self._next, self._mode = 0, mode
        try:
            with tf1.variable_creator_scope(self._create):
                yield
        finally:
            self._next = None

    def _create(self, next_creator: Callable[..., Any], **kwargs: Any) -> Any:
        context = TowerContext.current()
        if context is not None and context.in_get_variable:
            variable: Any = next_creator(**kwargs)  # shared by name, not by order
            return variable
        if self._next is None:
            variable = next_creator(**kwargs)
            self.variables.append(variable)
            return variable
        if self._next >= len(self.variables):
            raise ModelSpecError(
                f"model_fn made a new variable {kwargs.get('name')!r} in {self._mode}, beyond the "
                f"{len(self.variables)} of the first build",
                hint="make the same variables in every mode, or use tf.get_variable, which is shared by name",
            )
        variable = self.variables[self._next]
        self._next += 1
        shape = kwargs.get("shape")
        if shape is not None and not variable.shape.is_compatible_with(shape):
            raise ModelSpecError(
                f"model_fn made variable {kwargs.get('name')!r} of shape {shape} in {self._mode}, "
                f"where the first build made {variable.name!r} of shape {variable.shape}",
                hint="make the same variables in the same order in every mode, or use tf.get_variable",
            )
        if context is not None:
            context.touch(variable)
        return variable


class TowerContext:
    """One call of `model_fn`: what it added to the graph's collections, and which variables it touched."""

    _active = threading.local()

    def __init__(self, index: int, first: bool, plan: VariablePlan, training: bool = False) -> None:
        self.index = index
        self._plan = plan
        self.training = training  # what layers take for granted that are not told
        self.first = first  # the first build of the graph creates variables, later ones reuse them
        graph = tf1.get_default_graph()
        self._start = {key: len(graph.get_collection_ref(key)) for key in graph.get_all_collection_keys()}
        self._operations = len(graph.get_operations())
        self._touched: set[int] = set()
        self._by_name: set[int] = set()
        self.in_get_variable = False
        self.frozen: set[str] = set()  # handles of averages whose updates are no part of the step
        self.after_update: list[Callable[[], Any]] = []
        self.learning_rate_scale = 1.0

    @classmethod
    def current(cls) -> TowerContext | None:
        """The context that is being built, None outside of `model_fn`."""
        stack = getattr(cls._active, "stack", [])
        return stack[-1] if stack else None

    @contextmanager
    def entered(self) -> Iterator[TowerContext]:
        """Build inside this context; `get_variable` reports here."""
        stack = self._active.__dict__.setdefault("stack", [])
        stack.append(self)
        scope = tf1.get_variable_scope()
        reuse = None if self.first else True
        try:
            with tf1.variable_scope(scope, reuse=reuse, custom_getter=self._getter, auxiliary_name_scope=False):
                yield self
        finally:
            stack.pop()

    def _getter(self, getter: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
        self.in_get_variable = True
        try:
            variable = getter(name, *args, **kwargs)
        except ValueError as error:
            if self.first or "does not exist" not in str(error):
                raise
            raise ModelSpecError(
                f"model_fn asked for the variable {name!r}, which its first call in this graph did not make",
                hint="make the same variables in every mode",
            ) from error
        finally:
            self.in_get_variable = False
        parts = {id(part) for part in (variable if hasattr(variable, "_get_variable_list") else [variable])}
        self._by_name |= parts
        self._touched |= parts
        return variable

    def touch(self, variable: Any) -> None:
        """Note that this build uses a variable that an earlier one made."""
        self._touched.add(id(variable))

    def make_optional(self, variable: Any) -> None:
        """Let training start from checkpoints that do not hold a variable."""
        self._plan.optional.append(variable)

    def is_by_name(self, variable: Any) -> bool:
        """Whether this build got the variable from `get_variable`."""
        return id(variable) in self._by_name

    def new_operations(self) -> list[Any]:
        """The operations that were added to the graph since this build began."""
        return tf1.get_default_graph().get_operations()[self._operations :]

    def collection(self, key: str) -> list[Any]:
        """What this build added to a collection; for variables, those that it created or touched."""
        items = tf1.get_collection(key)
        start = self._start.get(key, 0)
        if key == tf1.GraphKeys.REGULARIZATION_LOSSES and not self.first:
            # Reused variables bring no penalty with them; those of the first build are functions of the same variables.
            return [*self._plan.penalties, *items[start:]]
        if key not in _VARIABLE_KEYS:
            return items[start:]
        return [item for position, item in enumerate(items) if position >= start or id(item) in self._touched]


def get_collection(key: str) -> list[Any]:
    """Like `tf.get_collection`, but only what the running call of `model_fn` added or uses.

    With several devices or modes in one graph `tf.get_collection` also gives what the others added.

    Args:
        key: one of `tf.GraphKeys`, or your own.
    """
    context = TowerContext.current()
    return tf1.get_collection(key) if context is None else context.collection(key)


@contextmanager
def var_scope(force_dtype: Any = None) -> Iterator[Any]:
    """Store variables in one dtype and hand them out in the dtype that was asked for.

    `tf.get_variable('a', [], tf.float16)` under `var_scope(force_dtype=tf.float32)` makes a float32 variable and
    returns a float16 tensor. Integer and boolean variables are left as they are.

    Args:
        force_dtype: dtype of storage; None changes nothing.
    """
    storage = None if force_dtype is None else tf.as_dtype(force_dtype)

    def own_getter(getter: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
        initializer = kwargs.get("initializer")
        by_value = initializer is not None and not callable(initializer)  # a value's dtype wins over the argument
        asked = tf.convert_to_tensor(initializer).dtype if by_value else kwargs.get("dtype") or tf.float32
        wanted = tf.as_dtype(asked).base_dtype
        if storage is None or not wanted.is_floating or wanted == storage:
            return getter(name, *args, **kwargs)
        if by_value:
            kwargs["initializer"] = tf.cast(initializer, storage)
        variable = getter(name, *args, **{**kwargs, "dtype": storage})
        with tf1.name_scope(None):
            return tf.cast(variable, wanted, name="Cast")

    with tf1.variable_scope(tf1.get_variable_scope(), custom_getter=own_getter, auxiliary_name_scope=False) as scope:
        yield scope
