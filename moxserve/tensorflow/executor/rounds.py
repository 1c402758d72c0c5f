"""Rounds: a batch for each tower of a step, out of one input that is made once.

The first tower takes the tensors that `input_fn` returned. For each further tower their iterators are pulled once more,
in the order of the towers, and what lies between the iterators and the tensors is copied. So every row is taken exactly
once, and in the same order as by a single tower.

The input may end in the middle of a round. The towers that get nothing then compute on the first tower's batch, which
they can take without an error, and `present` tells that it does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moxserve.tensorflow.executor.batching import IteratorRecorder, is_endless
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.lift import GET_NEXT, graph_def_of, lift_to_dataset, pulls
from moxserve.tensorflow.executor.repeatable import input_draws

__all__ = ["TowerInputs", "in_order", "input_rounds", "limit_rounds", "take_if"]

_SEED_STEP = 7919  # towers draw other random numbers than the first one does


class TowerInputs(list[Any]):
    """The tensors that one tower gets.

    Attributes:
        present: scalar bool tensor: whether this step has a batch for the tower; None where it always has.
        groups: how many of the tensors are from each `InputSpec.new_input`; empty for none.
    """

    def __init__(self, tensors: Sequence[Any], present: Any = None, groups: Sequence[int] = ()) -> None:
        super().__init__(tensors)
        self.present = present
        self.groups = tuple(groups)


def input_rounds(
    tensors: Sequence[Any], recorder: IteratorRecorder, towers: int
) -> tuple[list[TowerInputs], list[Any]]:
    """Give each tower tensors of its own.

    Args:
        tensors: the first tower's.
        recorder: which recorded the iterators that they come from.
        towers: how many there are.

    Returns:
        The tensors of each tower, and operations that start what was made for that, in order. Where nothing can be
        pulled again (constants, placeholders) all towers get the same tensors.
    """
    if towers == 1:
        return [TowerInputs(tensors)], []
    cut = _Cut(tensors, recorder.datasets)
    started: list[Any] = []
    if cut.foreign:  # queues, iterators that are not ours: a dataset around them can be asked whether there is more
        tensors, started = _as_dataset(tensors, recorder)
        cut = _Cut(tensors, recorder.datasets)
    rounds = [TowerInputs(tensors)]
    before: list[Any] = cut.sources
    endless = all(is_endless(recorder.datasets[op.inputs[0].name]) for op in cut.sources)
    for index in range(1, towers):
        values, present, before = _pull(cut.sources, before, endless)
        rounds.append(TowerInputs(cut.copy(values, index), present))
    return rounds, started


def limit_rounds(rounds: Sequence[TowerInputs], recorder: IteratorRecorder, count: int) -> list[TowerInputs]:
    """Let an input that never ends end after so many elements, also in the middle of a round.

    Args:
        rounds: the tensors of each tower.
        recorder: gets the iterator that counts.
        count: how many elements there are.
    """
    counter = recorder.make_iterator(tf.data.Dataset.range(count)).get_next()
    with tf1.control_dependencies([counter.op]):  # ends the step, and with it the run
        limited = [TowerInputs([tf.identity(tensor) for tensor in rounds[0]])]
    before = [counter.op]
    for given in rounds[1:]:
        _, present, before = _pull([counter.op], before, endless=False)
        limited.append(TowerInputs(given, present if given.present is None else tf.logical_and(present, given.present)))
    return limited


def in_order(make: Callable[[], Sequence[Any]], before: Sequence[Any]) -> list[Any]:
    """Make tensors that are computed after others were."""
    with tf1.control_dependencies([tensor.op for tensor in before]):
        return list(make())


def take_if(more: Any, take: Callable[[], Sequence[Any]], otherwise: Sequence[Any]) -> list[Any]:
    """Take what comes next where there is more, else give the first tower's tensors.

    Args:
        more: scalar bool tensor.
        take: makes the tensors, inside of the condition.
        otherwise: the first tower's.
    """
    taken = tf1.cond(more, lambda: list(take()), lambda: [tf.identity(tensor) for tensor in otherwise], strict=True)
    for tensor, first in zip(taken, otherwise, strict=True):
        tensor.set_shape(first.shape)
    return list(taken)


def _pull(sources: Sequence[Any], before: Sequence[Any], endless: bool) -> tuple[dict[str, Any], Any, list[Any]]:
    """Pull each iterator once more.

    Returns:
        The new tensor for each output of the sources, by name; whether they are there; the operations that pulled.
    """
    values: dict[str, Any] = {}
    presents: list[Any] = []
    for op in sources:
        with tf1.control_dependencies(before):
            spec = {name: op.get_attr(name) for name in ("output_types", "output_shapes")}
            if endless:
                pulled = tf.raw_ops.IteratorGetNext(iterator=op.inputs[0], **spec)
                before = [pulled[0].op]
            else:
                optional = tf.raw_ops.IteratorGetNextAsOptional(iterator=op.inputs[0], **spec)
                before = [optional.op]
                presents.append(tf.raw_ops.OptionalHasValue(optional=optional))

                def take(optional: Any = optional, spec: Mapping[str, Any] = spec) -> Sequence[Any]:
                    got: Sequence[Any] = tf.raw_ops.OptionalGetValue(optional=optional, **spec)
                    return got

                pulled = take_if(presents[-1], take, op.outputs)
        values.update({output.name: tensor for output, tensor in zip(op.outputs, pulled, strict=True)})
    present = None if not presents else presents[0] if len(presents) == 1 else tf.reduce_all(tf.stack(presents))
    return values, present, list(before)


def _as_dataset(tensors: Sequence[Any], recorder: IteratorRecorder) -> tuple[list[Any], list[Any]]:
    dataset, captured = lift_to_dataset(tensors, recorder.datasets)
    tf1.get_collection_ref(tf1.GraphKeys.SUMMARIES)[:] = recorder.summaries  # see `batching.lift_batches`
    started = [op for name, op in recorder.initializers.items() if name in captured]
    iterator = recorder.make_iterator(dataset)
    return list(iterator.get_next()), [*started, iterator.initializer]


class _Cut:
    """What lies between the iterators and the tensors of an input.

    Args:
        tensors: of the input.
        datasets: dataset behind an iterator, by the name of the iterator's resource tensor.

    Attributes:
        sources: operations that pull the known iterators, in the order in which they were made.
        foreign: whether something else is pulled.
    """

    def __init__(self, tensors: Sequence[Any], datasets: Mapping[str, Any]) -> None:
        self._tensors = list(tensors)
        self._between: dict[str, Any] = {}
        self._shared: dict[str, Any] = {}
        sources: dict[str, Any] = {}
        pending = [tensor.op for tensor in tensors]
        while pending:
            op = pending.pop()
            if op.name in self._between or op.name in self._shared or op.name in sources:
                continue
            if op.type == GET_NEXT and op.inputs[0].name in datasets:
                sources[op.name] = op
            elif _is_shared(op):
                self._shared[op.name] = op
            else:
                self._between[op.name] = op
                pending.extend([*op.control_inputs, *(tensor.op for tensor in op.inputs)])
        self.sources = sorted(sources.values(), key=lambda op: op._id)
        self.foreign = any(pulls(op) for op in self._between.values())

    def copy(self, values: Mapping[str, Any], index: int) -> list[Any]:
        """Compute the tensors from other elements.

        Args:
            values: for each output of the sources, by name.
            index: of the tower.
        """
        known = dict(values)
        for op in self._shared.values():
            known.update({tensor.name: tensor for tensor in op.outputs})
        if (draws := input_draws()) is not None:
            known.update(draws.of_tower(index))
        if self._between:
            known.update(self._import(known, index))
        return [known[tensor.name] for tensor in self._tensors]

    def _import(self, known: Mapping[str, Any], index: int) -> dict[str, Any]:
        wanted = list(dict.fromkeys(t.name for t in self._tensors if t.name not in known))
        consumed = {tensor.name for op in self._between.values() for tensor in op.inputs}
        graph_def = graph_def_of(list(self._between.values()), self._tensors[0].graph, keep_devices=True)
        for node in graph_def.node:
            if "seed2" in node.attr and (node.attr["seed"].i or node.attr["seed2"].i):
                node.attr["seed2"].i += index * _SEED_STEP
        made = tf1.import_graph_def(
            graph_def,
            input_map={name: tensor for name, tensor in known.items() if name in consumed},
            return_elements=wanted,
            name=f"input_{index}",
        )
        by_name = {tensor.name: tensor for tensor in self._tensors}
        for name, tensor in zip(wanted, made, strict=True):
            tensor.set_shape(by_name[name].shape)
        return dict(zip(wanted, made, strict=True))


def _is_shared(op: Any) -> bool:
    """Whether all towers use an operation as it is: values that are fed, constants, and what is a thing of its own."""
    return op.type in ("Placeholder", "PlaceholderV2", "PlaceholderWithDefault", "Const") or any(
        tensor.dtype == tf.resource for tensor in op.outputs
    )
