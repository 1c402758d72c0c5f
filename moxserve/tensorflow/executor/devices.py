"""Devices: the towers of one process, and how their gradients become one list.

`Devices` is one device, the fast path; `towers` has the others. What happens between processes is the business of
`workers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moxserve.tensorflow.executor.cluster import Topology

if TYPE_CHECKING:
    from moxserve.tensorflow.executor.branch import Branch

__all__ = ["Devices", "GradsAndVars", "Place", "devices_of"]

GradsAndVars = list[tuple[Any, Any]]


@dataclass(frozen=True)
class Place:
    """Where a tower is built.

    Attributes:
        index: 0 for the first.
        device: what `tf.device` takes: a string, or a function of an operation; empty leaves the choice to TensorFlow.
        replica: the tower has variables of its own, copies of the first one's.
    """

    index: int = 0
    device: Any = ""
    replica: bool = False


class Devices:
    """One device: its gradients are the gradients."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology

    @property
    def places(self) -> tuple[Place, ...]:
        """Where the towers of a branch are built, at least one."""
        return (Place(0, "/cpu:0" if self.topology.on_cpu else ""),)

    def reduce(self, per_tower: Sequence[GradsAndVars]) -> GradsAndVars:
        """Combine one list of (gradient, variable) per tower, the variables being the first tower's: the mean
        gradients, and the variables that are updated.
        """
        (only,) = per_tower
        return only

    def after_update(self, branch: Branch) -> list[Any]:
        """Make the operations that carry the updated variables to the other towers; called when all updates are
        control dependencies.
        """
        return []

    def after_start(self, branch: Branch) -> list[Any]:
        """Make the operations that carry restored variables to the other towers; called while the graph is open."""
        return []

    def configure(self, config: Any) -> None:
        """Add to the ConfigProto of sessions and servers what the towers need."""


def devices_of(topology: Topology) -> Devices:
    """Choose how the devices of a process work together.

    Raises:
        UsageError: the machine has GPUs, and fewer than were asked for.
    """
    if topology.num_devices == 1 or topology.job == "ps":  # a parameter server computes nothing
        return Devices(topology)
    from moxserve.tensorflow.executor.towers import towers_of

    return towers_of(topology)
