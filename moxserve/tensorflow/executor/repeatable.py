"""Runs that repeat: the same weights, bit for bit, from run to run, and also when a training was interrupted.

TensorFlow's random operations keep a state in the session, which goes with it: a training that goes on would draw what
its first steps drew. While a repeatable training is built, operations of the usual random functions of `tf` are
replaced by stateless ones, whose numbers follow from the operation's seed and

    in the model, and in input_fn without auto_batch    the global step (and the turn of a loop)
    in input_fn with auto_batch                         the number of the row, counted over all runs in log_dir

so that they are what they would have been, whenever a run began. Initial values of variables are left alone: they are
drawn once. So is what a user's own `tf.data` pipeline draws in its functions: that input is taken up again by passing
by what was given before, random numbers included.
"""

from __future__ import annotations

import random
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from moxserve.dataflow import seeds
from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.position import INPUT_COUNTS_STEPS, INPUT_POSITIONS

__all__ = ["InputDraws", "Repeatable", "input_draws"]

DEFAULT_SEED = 1
_WHILE = ("WhileCondFuncGraph", "WhileBodyFuncGraph")
_COND = ("CondBranchFuncGraph",)
_lock = threading.RLock()
_building = threading.local()


class InputDraws:
    """What the random operations of one input draw from: made while `input_fn` runs.

    Args:
        step: scalar `int64`, the step that they draw for; None where they draw for a row.

    Attributes:
        by_row: whether they draw for a row.
        position: scalar `int64`: how many rows (batches, without `by_row`) were given by earlier runs.
        number: scalar `int64`, what they draw for; stands for the number of the row with `by_row`.
    """

    def __init__(self, step: Any = None) -> None:
        self.by_row = step is None
        self.position = tf1.placeholder_with_default(tf.constant(0, tf.int64), [], "resume_position")
        number = tf1.placeholder_with_default(tf.constant(0, tf.int64), [], "row_number") if step is None else step
        self.number = tf.identity(number, "drawn_for")
        self._before = list(tf1.get_collection(INPUT_POSITIONS))

    def register(self) -> None:
        """Let the run feed the position."""
        if self.position not in tf1.get_collection(INPUT_POSITIONS):
            tf1.add_to_collection(INPUT_POSITIONS, self.position)
            if not self.by_row:
                tf1.add_to_collection(INPUT_COUNTS_STEPS, self.position)

    def resumed(self, dataset: Any) -> Any:
        """Let a dataset begin where earlier runs stopped; one that knows its position already is left alone."""
        before = {id(tensor) for tensor in self._before}
        known = [t for t in tf1.get_collection(INPUT_POSITIONS) if id(t) not in before and t is not self.position]
        if any(_reaches(dataset._variant_tensor.op, tensor.op) for tensor in known):
            return dataset
        self.register()
        return dataset.skip(self.position)

    def of_tower(self, index: int) -> dict[str, Any]:
        """What the operations of another tower than the first draw for, by the name of what those of the first do."""
        return {} if self.by_row else {self.number.name: self.number + (index << 40)}

    def rows(self, end: int) -> Any:
        """The numbers of the rows, as a dataset."""
        self.register()
        return tf.data.Dataset.range(self.position, end)


def _reaches(op: Any, wanted: Any) -> bool:
    """Whether an operation depends on another."""
    seen: set[Any] = set()
    pending = [op]
    while pending:
        op = pending.pop()
        if op is wanted:
            return True
        if op not in seen:
            seen.add(op)
            pending.extend(tensor.op for tensor in op.inputs)
    return False


def input_draws() -> InputDraws | None:
    """Return the draws of the input that is being built; None where the run need not repeat."""
    return getattr(_building, "draws", None)


class Repeatable:
    """What a run does to repeat; nothing if it need not.

    Args:
        wanted: whether it is to repeat.
        training: whether it trains.
        worker: number of this process; each draws numbers of its own.
    """

    def __init__(self, wanted: bool, training: bool, worker: int = 0) -> None:
        self.wanted = wanted
        self._replaces = wanted and training
        self._worker = worker
        self._step: Any = None

    @contextmanager
    def running(self, graph: Any) -> Iterator[None]:
        """The whole run: operations without a fixed order of their sums are exchanged for those with one, and
        everything that has no seed gets one.
        """
        if not self.wanted:
            yield
            return
        from tensorflow.python.framework import config

        graph.seed = DEFAULT_SEED if graph.seed is None else graph.seed
        before = config.is_op_determinism_enabled()
        states = random.getstate(), np.random.get_state(), seeds.snapshot()
        if not seeds.is_fixed():
            seeds.fix_rng_seed(graph.seed)
        random.seed(graph.seed)
        np.random.seed(graph.seed % (1 << 32))
        tf.config.experimental.enable_op_determinism()
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            seeds.restore(states[2])
            if not before:
                config.disable_op_determinism()

    @contextmanager
    def input(self, by_row: bool, global_step: Any) -> Iterator[None]:
        """While the input of a training is built.

        Args:
            by_row: whether `input_fn` describes one row.
            global_step: the step counter.

        Raises:
            UsageError: it uses queues, whose threads fill them in no fixed order.
        """
        if not self._replaces:
            yield
            return
        draws = InputDraws(None if by_row else self._step_key(global_step))
        _building.draws = draws
        try:
            with self._replacing(draws.number):
                yield
            if tf1.get_collection(tf1.GraphKeys.QUEUE_RUNNERS):
                raise UsageError(
                    "flag --deterministic: input_fn uses queues of tf.train, which threads fill in no fixed order",
                    hint="make the input with tf.data, or leave --deterministic out",
                )
        finally:
            _building.draws = None

    @contextmanager
    def model(self, global_step: Any) -> Iterator[None]:
        """While model and optimizer of a training are built; the step is counted after all have drawn."""
        if not self._replaces:
            yield
            return
        graph = tf1.get_default_graph()
        before = len(graph.get_operations())
        left: list[str] = []
        with self._replacing(self._step_key(global_step), left):
            yield
        left += [op.name for op in graph.get_operations()[before:] if _has_own_state(op)]
        if left:
            tf1.logging.warning(
                "deterministic: %s draws from a state that is lost when the training is interrupted; functions of "
                "tf.random outside of tf.function do not",
                ", ".join(sorted(set(left))),
            )

    @contextmanager
    def counted(self) -> Iterator[None]:
        """While the operation of a step is built, which counts it: all that is made in here comes after the reading of
        the counter.
        """
        with ExitStack() as stack:
            if self._step is not None:
                stack.enter_context(tf1.control_dependencies([self._step.op]))
            yield

    def _step_key(self, global_step: Any) -> Any:
        if self._step is None:
            with tf1.name_scope(None), tf.device("/cpu:0"):
                # A variable's initial value may have been drawn outside of its initializer, before there is a step.
                self._step = tf1.cond(
                    tf1.is_variable_initialized(global_step),
                    lambda: tf.cast(global_step.read_value(), tf.int64),
                    lambda: tf.constant(0, tf.int64),
                    name="drawn_for_step",
                )
        return self._step

    @contextmanager
    def _replacing(self, key: Any, left: list[str] | None = None) -> Iterator[None]:
        """Put stand-ins in the place of the functions that make random operations.

        Args:
            key: what they draw for.
            left: takes the names of operations that are made in functions, where they cannot be replaced.
        """
        graph = tf1.get_default_graph()
        thread = threading.get_ident()
        creating = [0]

        def current() -> Any:
            """The number to draw for, None where the original is wanted."""
            if creating[0] or threading.get_ident() != thread:
                return None
            number = _in_control_flow(graph, key)
            if number is None and left is not None:
                left.append(getattr(tf1.get_default_graph(), "name", "") or "a loop of control flow v1")
            return number

        def creator(next_creator: Callable[..., Any], **kwargs: Any) -> Any:
            creating[0] += 1
            try:
                return next_creator(**kwargs)
            finally:
                creating[0] -= 1

        with _lock, ExitStack() as stack:
            stack.enter_context(tf1.variable_creator_scope(creator))
            for module, name, stand_in in _stand_ins():
                original = getattr(module, name)
                setattr(module, name, _exchange(original, stand_in, current, self._worker))
                stack.callback(setattr, module, name, original)
            yield


def _in_control_flow(graph: Any, number: Any) -> Any:
    """Mix the turn of each loop around into a number; None in a function that may be called from anywhere."""
    inner = tf1.get_default_graph()
    turns: list[Any] = []
    while inner is not graph:
        kind = type(inner).__name__
        if kind in _WHILE and inner.inputs:
            turns.append(inner.inputs[0])  # the counter of its turns
        elif kind not in _COND:
            return None
        inner = inner.outer_graph
    if graph._get_control_flow_context() is not None:
        return None  # a loop of the old kind
    for turn in turns:
        number = number * 1_000_003 + (tf.cast(turn, tf.int64) + 1) * (1 << 32)
    return number


def _has_own_state(op: Any) -> bool:
    """Whether an operation draws random numbers from a state, and is none of those that are replaced."""
    named = {"".join(part.title() for part in name.split("_")) for _, name, _ in _stand_ins()}
    return op.type not in named and op.op_def is not None and op.op_def.is_stateful and "seed2" in op.node_def.attr


def _exchange(
    original: Callable[..., Any], stand_in: Callable[..., Any], current: Callable[[], Any], worker: int
) -> Callable[..., Any]:
    """Return what takes the place of a function that makes a random operation."""
    import inspect

    signature = inspect.signature(original)

    def made(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given: dict[str, Any] = dict(bound.arguments)
        number = current()
        seeds = (given.pop("seed") or 0, given.pop("seed2") or 0)
        if number is None or seeds == (0, 0):
            return original(*args, **kwargs)
        constant = zlib.crc32(repr((*seeds, worker)).encode())
        seed = tf.stack([tf.constant(constant, tf.int64), number])
        return stand_in(seed, **given)

    return made


def _stand_ins() -> list[tuple[Any, str, Callable[..., Any]]]:
    """The functions that make random operations, with their stateless counterparts."""
    from tensorflow.python.ops import gen_image_ops, gen_random_ops
    from tensorflow.python.ops import gen_stateless_random_ops as stateless

    def shuffle(seed: Any, value: Any, name: Any) -> Any:
        value = tf.convert_to_tensor(value)
        drawn = stateless.stateless_random_uniform([tf.shape(value)[0]], seed, tf.float64)
        return tf.gather(value, tf.argsort(drawn, stable=True), name=name)

    def gamma(seed: Any, shape: Any, alpha: Any, name: Any) -> Any:
        whole = tf.concat([tf.cast(shape, tf.int32), tf.shape(alpha)], 0)
        return stateless.stateless_random_gamma_v2(whole, seed, tf.broadcast_to(alpha, whole), name)

    def box(seed: Any, **given: Any) -> Any:
        return gen_image_ops.stateless_sample_distorted_bounding_box(seed=seed, **given)

    def renamed(function: Callable[..., Any], names: Mapping[str, str] | None = None) -> Callable[..., Any]:
        return lambda seed, **given: function(
            seed=seed, **{(names or {}).get(name, name): value for name, value in given.items()}
        )

    truncated = renamed(stateless.stateless_parameterized_truncated_normal, {"stdevs": "stddevs"})
    return [
        (gen_random_ops, "random_uniform", renamed(stateless.stateless_random_uniform)),
        (gen_random_ops, "random_standard_normal", renamed(stateless.stateless_random_normal)),
        (gen_random_ops, "truncated_normal", renamed(stateless.stateless_truncated_normal)),
        (gen_random_ops, "random_uniform_int", renamed(stateless.stateless_random_uniform_int)),
        (gen_random_ops, "multinomial", renamed(stateless.stateless_multinomial)),
        (gen_random_ops, "random_poisson_v2", renamed(stateless.stateless_random_poisson, {"rate": "lam"})),
        (gen_random_ops, "parameterized_truncated_normal", truncated),
        (gen_random_ops, "random_gamma", gamma),
        (gen_random_ops, "random_shuffle", shuffle),
        (gen_image_ops, "sample_distorted_bounding_box_v2", box),
    ]
