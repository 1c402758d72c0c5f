"""The kinds of `Devices` of a process with several towers: where variables live, where gradients meet, and how updated
variables reach the towers.

    SharedTowers      the variables once; all towers read them
    ReplicatedTowers  each further tower reads copies of its own, which follow the first tower's after each step

The towers are on GPUs; where there is none, on logical devices of the CPU, which TensorFlow makes as many of as asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.devices import Devices, GradsAndVars, Place
from moxserve.tensorflow.executor.env import tf, tf1

if TYPE_CHECKING:
    from moxserve.tensorflow.executor.branch import Branch

__all__ = ["ReplicatedTowers", "SharedTowers", "towers_of"]

_VARIABLE_OPS = ("VarHandleOp", "VariableV2", "Variable")


def towers_of(topology: Topology) -> Towers:
    """Choose where the variables of several towers live.

    Raises:
        UsageError: the machine has GPUs, and fewer than were asked for.
    """
    return (SharedTowers if topology.variable_update == "parameter_server" else ReplicatedTowers)(topology)


def _uses_gpus(topology: Topology) -> bool:
    """Whether the towers are on GPUs.

    Raises:
        UsageError: there are too few.
    """
    wanted = topology.num_devices
    # Asks the drivers, and makes no session, which would take the memory of the GPUs.
    found = 0 if topology.on_cpu else len(tf.config.list_physical_devices("GPU"))
    if 0 < found < wanted:
        raise UsageError(
            f"flag --num_gpus={wanted}: this machine has {found} GPU(s)",
            hint=f"give --num_gpus={found}, or --clone_on_cpu for {wanted} logical devices of the CPU",
        )
    if not found and not topology.on_cpu:
        tf1.logging.warning(
            "--num_gpus=%d, and this machine has no GPU: the towers run on %d logical devices of the CPU, "
            "which share its cores",
            wanted,
            wanted,
        )
    return bool(found)


class _Placer:
    """Puts variables on one device and all else on another; what a user placed stays where it was placed.

    Args:
        variables: device of variables.
        others: device of everything else.
    """

    def __init__(self, variables: str, others: str) -> None:
        self._variables = tf1.DeviceSpec.from_string(variables)
        self._others = tf1.DeviceSpec.from_string(others)

    def __call__(self, op: Any) -> str:
        """Tell the device of an operation that is being made; `tf.device` takes it as a function."""
        given = tf1.DeviceSpec.from_string(op.device or "")
        if op.type in _VARIABLE_OPS:
            return str(self._variables.make_merged_spec(given).to_string())
        for tensor in op.inputs:  # a variable is read and written where it is
            if tensor.op.type == "VarHandleOp":
                return str(tensor.op.device)
        return str(self._others.make_merged_spec(given).to_string())


class Towers(Devices):
    """What all kinds have in common: devices, and the mean of gradients.

    Args:
        topology: of the job; `num_devices` is at least 2.

    Raises:
        UsageError: the machine has GPUs, and fewer than were asked for.
    """

    def __init__(self, topology: Topology) -> None:
        super().__init__(topology)
        self._kind = "gpu" if _uses_gpus(topology) else "cpu"
        on_gpu = topology.parameter_device == "gpu" and self._kind == "gpu"
        self._parameters = "/gpu:0" if on_gpu else "/cpu:0"

    @property
    def _own_process(self) -> str:
        """Start of a device's name that keeps it from the parameter servers."""
        topology = self.topology
        return f"/job:{topology.job}/task:{topology.index}" if topology.ps and topology.job else ""

    def _device(self, index: int) -> str:
        return f"/{self._kind}:{index}"

    def configure(self, config: Any) -> None:
        """Ask for as many logical devices of the CPU as there are towers on it."""
        if self._kind == "cpu":
            config.device_count["CPU"] = self.topology.num_devices

    def reduce(self, per_tower: Sequence[GradsAndVars]) -> GradsAndVars:
        """Average the gradients of the towers. One that a variable has no gradient from counts as zero: its loss does
        not depend on it.

        Args:
            per_tower: one list of (gradient, variable) per tower; the variables are the first tower's.
        """
        met: dict[int, tuple[Any, list[Any]]] = {}
        for pairs in per_tower:
            for gradient, variable in pairs:
                met.setdefault(id(variable), (variable, []))[1].append(gradient)
        with tf1.name_scope("mean_gradients"), tf1.device(self._meeting):
            return [(_mean(gradients, len(per_tower)), variable) for variable, gradients in met.values()]

    @property
    def _meeting(self) -> str:
        return self._parameters


class SharedTowers(Towers):
    """`parameter_server`: the variables are there once, on the parameter servers where there are some, else on
    `local_parameter_device`.
    """

    @property
    def places(self) -> tuple[Place, ...]:
        """One a device; none has variables of its own."""
        count = self.topology.num_devices
        return tuple(Place(i, _Placer(self._parameters, self._device(i))) for i in range(count))


class ReplicatedTowers(Towers):
    """`replicated`, `distributed_replicated` and `all_reduce`: each further tower has copies of the variables.

    The optimizer is applied once, to the first tower's variables, and the copies follow. These live on the first
    device; those of `distributed_replicated` on the parameter servers, where there are some. Gradients meet on
    `local_parameter_device`, in `all_reduce` on the first device: the copies are made from there, so that a collective
    that leaves the sum on all devices would bring nothing.
    """

    @property
    def places(self) -> tuple[Place, ...]:
        """One a device; all but the first have copies."""
        topology, count = self.topology, self.topology.num_devices
        on_servers = topology.variable_update == "distributed_replicated"
        masters = self._parameters if on_servers else self._own_process + self._device(0)
        others = (
            Place(i, _Placer(self._own_process + self._device(i), self._device(i)), replica=True)
            for i in range(1, count)
        )
        return (Place(0, _Placer(masters, self._device(0))), *others)

    @property
    def _meeting(self) -> str:
        return self._device(0) if self.topology.variable_update == "all_reduce" else self._parameters

    def after_update(self, branch: Branch) -> list[Any]:
        """Copy the first tower's variables to the others."""
        return self._copies(branch)

    def after_start(self, branch: Branch) -> list[Any]:
        """Copy the first tower's variables to the others."""
        return self._copies(branch)

    def _copies(self, branch: Branch) -> list[Any]:
        assigned: list[Any] = []
        with tf1.name_scope("copies"):
            for original, copies in branch.plan.copies_by_original():
                with tf1.device(self._own_process + self._parameters):
                    value = original.read_value()  # once, however many copies there are
                for copy in copies:
                    with tf1.device(copy.device):
                        assigned.append(copy.assign(value, read_value=False))
        return assigned


def _mean(gradients: Sequence[Any], towers: int) -> Any:
    """Average gradients, dense or sparse; those that are missing count as zero."""
    if not all(isinstance(gradient, tf.IndexedSlices) for gradient in gradients):
        dense = [tf.convert_to_tensor(gradient) for gradient in gradients]
        return tf.add_n(dense) / tf.cast(towers, dense[0].dtype)
    values = tf.concat([gradient.values for gradient in gradients], axis=0)
    indices = tf.concat([tf.cast(gradient.indices, tf.int64) for gradient in gradients], axis=0)
    return tf.IndexedSlices(values / tf.cast(towers, values.dtype), indices, gradients[0].dense_shape)
