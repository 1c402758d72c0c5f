"""Keras layers inside of `model_fn`: they learn from the run what Keras' own `fit` would tell them.

Keras 2 (`tf.keras`, `tf_keras`), where neither the script nor an enclosing layer says otherwise:

    training            dropout is on, and batch norms use and update statistics of the batch, in TRAIN only
    penalties           of weights, activities and `add_loss` are in `REGULARIZATION_LOSSES`
    initial weights     of `load_weights`, `set_weights` and `Embedding(weights=...)` are what the training starts from
    seeds               of initial values and dropout follow from `tf.set_random_seed`; so do those of `tf.layers`

Layers of Keras 3 are refused: what they need of a run (updates of states and seeds, names that a checkpoint can rely
on) they have in eager TensorFlow only. A Keras that is not imported yet is taught when it is.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from importlib import abc, machinery, util
from typing import Any

from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.python_calls import python_function
from moxserve.tensorflow.executor.variables import TowerContext

__all__ = ["fed_by_keras", "teach"]

_LEGACY = "tf_keras.src.legacy_tf_layers"  # `tf.layers`: they are told by their callers, and know collections
_STATE_OPS = ("VarHandleOp", "Const", "NoOp")


def teach() -> None:
    """Teach what is imported of Keras now, and the rest when it is imported. Does nothing the second time."""
    for name, lesson in _LESSONS.items():
        module = sys.modules.get(name)
        if module is not None:
            _once(module, lesson)
        elif not any(isinstance(finder, _Teacher) and finder.module == name for finder in sys.meta_path):
            sys.meta_path.insert(0, _Teacher(name, lesson))


def _once(module: Any, lesson: Callable[[Any], None]) -> None:
    if not getattr(module, "_moxserve_taught", False):
        module._moxserve_taught = True
        lesson(module)


class _Teacher(abc.MetaPathFinder):
    """Waits for a module to be imported, and teaches it then.

    Args:
        module: its name.
        lesson: gets the module.
    """

    def __init__(self, module: str, lesson: Callable[[Any], None]) -> None:
        self.module = module
        self._lesson = lesson

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> machinery.ModuleSpec | None:
        """Let the others find it; see importlib."""
        if fullname != self.module:
            return None
        sys.meta_path.remove(self)
        spec = util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            _once(module, self._lesson)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


# -- Keras 2


def _teach_layers(module: Any) -> None:
    """Teach `tf_keras.src.engine.base_layer_v1`: layers as they are in graph mode."""
    backend, layer = module.backend, module.Layer
    call, add_loss = layer.__call__, layer.add_loss

    @wraps(call)
    def taught_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        context = TowerContext.current()
        if context is None:
            return call(self, *args, **kwargs)
        with _seeded(backend), nullcontext() if _is_legacy(self) else _phase(backend, context.training):
            try:
                return call(self, *args, **kwargs)
            except (TypeError, ValueError) as error:
                told = getattr(args[0] if args else None, "explanation", None)  # the list that `model_fn` got
                if told is None:
                    raise
                raise ModelSpecError(f"model_fn called {type(self).__name__} with inputs: {told}") from error

    @wraps(add_loss)
    def taught_add_loss(self: Any, losses: Any, *args: Any, **kwargs: Any) -> None:
        add_loss(self, losses, *args, **kwargs)
        context = TowerContext.current()
        if context is not None and not _is_legacy(self):
            for loss in tf.nest.flatten(losses):
                _collect(loss, context)

    layer.__call__, layer.add_loss = taught_call, taught_add_loss


def _is_legacy(layer: Any) -> bool:
    return any(kind.__module__.startswith(_LEGACY) for kind in type(layer).__mro__)


@contextmanager
def _phase(backend: Any, training: bool) -> Iterator[None]:
    """Set what layers take for `training` that are not told; a script that set it itself keeps it."""
    if backend.global_learning_phase_is_set() or tf1.get_default_graph() in backend._GRAPH_LEARNING_PHASES:
        yield
        return
    with backend.deprecated_internal_learning_phase_scope(int(training)):
        yield


@contextmanager
def _seeded(backend: Any) -> Iterator[None]:
    """Draw the seeds of layers from the graph's, as all other random operations do."""
    graph, generator = tf1.get_default_graph(), backend._SEED_GENERATOR
    if graph.seed is None or getattr(generator, "generator", None) is not None:
        yield
        return
    # The number of operations so far, for another seed in each layer.
    generator.generator = random.Random(f"{graph.seed} {len(graph.get_operations())}")
    try:
        yield
    finally:
        generator.generator = None


def _collect(loss: Any, context: TowerContext) -> None:
    """Add a penalty to the collection of the tower that is being built."""
    if callable(loss):
        if context.first:  # else the first tower's penalty is that of the same variable
            tf1.add_to_collection(tf1.GraphKeys.REGULARIZATION_LOSSES, loss())
        return
    if not tf1.is_tensor(loss) or loss.graph is not tf1.get_default_graph():
        return
    sources = _sources(loss)
    if any(_is_keras_input(op) for op in sources):
        return  # a functional model's own dry run: it is called again with what goes in
    if context.first or not all(op.type in _STATE_OPS for op in sources):
        tf1.add_to_collection(tf1.GraphKeys.REGULARIZATION_LOSSES, loss)


def _sources(tensor: Any) -> list[Any]:
    """The operations without inputs that a tensor is computed from."""
    seen: dict[str, Any] = {}
    pending = [tensor.op]
    while pending:
        op = pending.pop()
        if op.name not in seen:
            seen[op.name] = op
            pending.extend(value.op for value in op.inputs)
    return [op for op in seen.values() if not op.inputs]


def _is_keras_input(op: Any) -> bool:
    return op.type == "Placeholder" and hasattr(op.outputs[0], "_keras_history")


def fed_by_keras(operations: list[Any]) -> set[str]:
    """Find the operations that only Keras could run: they depend on a `keras.Input`, which stands for what a functional
    model will be called with.

    Args:
        operations: to be searched.

    Returns:
        Their names; empty where there is no such input.
    """
    found: set[str] = set()
    pending = [op for op in operations if _is_keras_input(op)]
    while pending:
        op = pending.pop()
        if op.name not in found:
            found.add(op.name)
            pending.extend(consumer for tensor in op.outputs for consumer in tensor.consumers())
    return found


def _teach_backend(module: Any) -> None:
    """Teach `tf_keras.src.backend`: values that are set while a model is built are those that it starts from."""
    set_values = module.batch_set_value

    @wraps(set_values)
    def taught_set_values(tuples: Any) -> None:
        context = TowerContext.current()
        if context is None:
            set_values(tuples)
            return
        for variable, value in tuples:
            if context.first:
                _start_from(variable, value)

    module.batch_set_value = taught_set_values


def _start_from(variable: Any, value: Any) -> None:
    """Exchange the initial value of a variable. The value stays out of the graph, which has little room."""
    inner = getattr(variable, "_variable", None)  # of a variable that a layer of mixed precision casts
    variable = inner if isinstance(inner, tf.Variable) else variable
    array = variable.dtype.base_dtype.as_numpy_dtype(value)
    initial = python_function(lambda: array, [], variable.dtype.base_dtype, stateful=False)
    initial.set_shape(variable.shape)
    variable._initial_value = initial
    variable._initializer_op = tf1.assign(variable, initial).op


# -- Keras 3


def _teach_keras_3(module: Any) -> None:
    """Teach `keras.src.layers.layer` to refuse."""
    call = module.Layer.__call__

    @wraps(call)
    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        if TowerContext.current() is None:
            return call(self, *args, **kwargs)
        raise ModelSpecError(
            f"model_fn called the layer {type(self).__name__} of Keras 3, which trains in eager TensorFlow only: here "
            "its batch norms, dropout and penalties would do nothing",
            hint="take it from Keras 2: tf.keras.layers, or `import tf_keras as keras`",
        )

    module.Layer.__call__ = refuse


_LESSONS: dict[str, Callable[[Any], None]] = {
    "tf_keras.src.engine.base_layer_v1": _teach_layers,
    "tf_keras.src.backend": _teach_backend,
    "keras.src.layers.layer": _teach_keras_3,
}
