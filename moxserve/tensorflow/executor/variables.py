"""Variables of a model that is built more than once in one graph: who created them, who touched them, under which
dtype.

Two ways of making variables must share them between builds. `get_variable` (with `tf.compat.v1.layers`) is covered by
variable-scope reuse. Keras layers and plain `tf.Variable` ignore reuse: `VariablePlan` hands the k-th created variable
out again. `TowerContext` remembers which of them one build used, which is what `mox.get_collection` answers from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.tower_collections import SAVED_KEYS, CollectionView

__all__ = [
    "TowerContext",
    "VariablePlan",
    "get_collection",
    "model_name",
    "reaches",
    "var_scope",
]

_VARIABLE_KEYS = (*SAVED_KEYS, tf1.GraphKeys.LOCAL_VARIABLES)


class VariablePlan:
    """The variables of one `model_fn` in the order of creation, replayed in every later build of the same graph.

    Those of `get_variable` are left out: variable scopes share them by name.
    """

    def __init__(self) -> None:
        self.variables: list[Any] = []
        self.named: dict[str, Any] = {}  # those of `get_variable`
        self.penalties: list[Any] = []  # REGULARIZATION_LOSSES of the first build that are functions of variables alone
        self.optional: list[Any] = []  # what a training may start without, because it was not there before
        self.replicas: dict[int, VariablePlan] = {}  # by tower: the copies of those that have their own
        self.collections = CollectionView()
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

    def replica(self, index: int) -> VariablePlan:
        """The variables of a tower that has copies of its own."""
        if index not in self.replicas:
            self.replicas[index] = VariablePlan()
            self.replicas[index].collections = self.collections.of_replica()
        return self.replicas[index]

    def copies_of(self, index: int) -> dict[int, Any]:
        """The copies that a tower has, by the identity of the variable that each is a copy of; empty for a tower that
        shares the variables.

        Raises:
            ModelSpecError: the tower made a variable that the first one did not make.
        """
        replica = self.replicas.get(index)
        return {} if replica is None else {id(original): copy for original, copy in _pairs(self, replica, index)}

    def copies_by_original(self) -> list[tuple[Any, list[Any]]]:
        """Each variable that has copies, and all of its copies."""
        found: dict[int, tuple[Any, list[Any]]] = {}
        for index, replica in self.replicas.items():
            for original, copy in _pairs(self, replica, index):
                found.setdefault(id(original), (original, []))[1].append(copy)
        return list(found.values())

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


def _pairs(plan: VariablePlan, replica: VariablePlan, index: int) -> list[tuple[Any, Any]]:
    """Match the copies of a tower with the variables: those of `get_variable` by name, the others by order."""
    for name in replica.named.keys() - plan.named.keys():
        raise _unmatched(f"tf.get_variable({name!r})", index)
    pairs = [
        pair
        for name, copy in replica.named.items()
        for pair in zip(_parts(plan.named[name]), _parts(copy), strict=True)
    ]
    for position, copy in enumerate(replica.variables):
        original = plan.variables[position] if position < len(plan.variables) else None
        if original is None or not original.shape.is_compatible_with(copy.shape) or original.dtype != copy.dtype:
            raise _unmatched(repr(copy.op.name), index)
        pairs.append((original, copy))
    return [(original, copy) for original, copy in pairs if not _is_local(original)]


def _unmatched(what: str, index: int) -> ModelSpecError:
    return ModelSpecError(
        f"model_fn made the variable {what} for device {index}, which it did not make for the first device",
        hint="make the same variables in every call of model_fn, in the same order",
    )


def _parts(variable: Any) -> list[Any]:
    """A variable as the variables that it is made of, several where it is partitioned."""
    return list(variable._get_variable_list()) if hasattr(variable, "_get_variable_list") else [variable]


def _is_local(variable: Any) -> bool:
    """Whether each tower initialises a variable for itself: counters of metrics, for one."""
    local = variable.graph.get_collection(tf1.GraphKeys.LOCAL_VARIABLES)
    return any(item is variable for item in local)


class TowerContext:
    """One call of `model_fn`: what it added to the graph's collections, and which variables it touched.

    Args:
        index: of the tower.
        first: whether this build makes the variables; later ones of the same plan reuse them.
        plan: of the variables.
        training: whether the mode is TRAIN.
        scope: variable scope of the tower's own copies; empty for a tower that shares the variables.
    """

    _active = threading.local()

    def __init__(self, index: int, first: bool, plan: VariablePlan, training: bool = False, scope: str = "") -> None:
        self.index = index
        self._plan = plan
        self._scope = scope
        self.training = training  # what layers take for granted that are not told
        self.first = first  # the first build of the graph creates variables, later ones reuse them
        self._start: dict[str, int] = {}
        self._operations = len(tf1.get_default_graph().get_operations())
        self._touched: set[int] = set()
        self._by_name: set[int] = set()
        self.in_get_variable = False
        self.frozen: set[str] = set()  # handles of averages whose updates are no part of the step
        self.after_update: list[Callable[[], Any]] = []
        self.learning_rate_scale = 1.0

    @property
    def prefix(self) -> str:
        """What the names of the tower's own copies begin with; empty where it has none."""
        return f"{self._scope}/" if self._scope else ""

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
        scope = self._scope or tf1.get_variable_scope()
        reuse = None if self.first else True
        # Reused variables bring no penalty with them; those of the first build are functions of the same variables.
        penalties = [] if self.first else self._plan.penalties
        try:
            with (
                self._plan.collections.entered(bool(self._scope), penalties),
                tf1.variable_scope(scope, reuse=reuse, custom_getter=self._getter, auxiliary_name_scope=False),
            ):
                graph = tf1.get_default_graph()
                self._start = {key: len(graph.get_collection_ref(key)) for key in graph.get_all_collection_keys()}
                self._start[tf1.GraphKeys.REGULARIZATION_LOSSES] = len(
                    tf1.get_collection(tf1.GraphKeys.REGULARIZATION_LOSSES)
                ) - len(penalties)
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
        if self.first:
            self._plan.named[name.removeprefix(self.prefix)] = variable
        parts = {id(part) for part in _parts(variable)}
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

    def keep_penalties(self, inputs: Sequence[Any]) -> None:
        """Remember the penalties of this build for later ones, but for those that depend on the input: they are made
        anew by each build.
        """
        taken = {tensor.op for tensor in inputs}
        penalties = self.collection(tf1.GraphKeys.REGULARIZATION_LOSSES)
        self._plan.penalties = [penalty for penalty in penalties if not reaches(penalty, taken)]

    def new_operations(self) -> list[Any]:
        """The operations that were added to the graph since this build began."""
        return tf1.get_default_graph().get_operations()[self._operations :]

    def collection(self, key: str) -> list[Any]:
        """What this build added to a collection; for variables, those that it created or touched."""
        items = tf1.get_collection(key)
        start = self._start.get(key, 0)
        if key not in _VARIABLE_KEYS:
            return items[start:]
        return [item for position, item in enumerate(items) if position >= start or id(item) in self._touched]


def reaches(tensor: Any, operations: set[Any]) -> bool:
    """Whether a tensor is computed from what some operations give."""
    pending, seen = [tensor.op], set()
    while pending:
        op = pending.pop()
        if op in operations:
            return True
        if op.name not in seen:
            seen.add(op.name)
            pending.extend(value.op for value in op.inputs)
    return False


def model_name(variable: Any) -> str:
    """Return the name that a variable has in the model: that of the first tower's, for a copy of the running tower."""
    context = TowerContext.current()
    name: str = variable.op.name
    return name if context is None else name.removeprefix(context.prefix)


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
