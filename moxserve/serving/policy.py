"""Which versions should be there, and what to do next to get there. Pure functions: no files, no threads, no clock.

Availability comes first: the new version is loaded before the old one is unloaded, and an old one that nobody wants any
more goes on serving until a wanted one is ready.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Action", "State", "VersionPolicy", "VersionView", "aspired_versions", "next_action"]


class State(enum.IntEnum):
    """Where a version is in its life; the numbers are those of ModelVersionStatus.State."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True)
class VersionPolicy:
    """Which of the versions on disk to serve.

    Attributes:
        kind: `latest`, `all` or `specific`.
        num_versions: for `latest`: how many; 0 counts as 1.
        versions: for `specific`: which.
    """

    kind: str = "latest"
    num_versions: int = 1
    versions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class VersionView:
    """What the policy sees of a version.

    Attributes:
        version: its number.
        state: where it is.
        aspired: whether it should be there.
    """

    version: int
    state: State
    aspired: bool


class Action(enum.Enum):
    """What to do to a version."""

    LOAD = "load"
    UNLOAD = "unload"


def aspired_versions(found: Iterable[int], policy: VersionPolicy) -> set[int]:
    """Choose the versions to serve.

    Args:
        found: complete versions on disk.
        policy: the rule.

    Returns:
        The chosen ones; empty when the policy finds none.
    """
    there = set(found)
    if policy.kind == "all":
        return there
    if policy.kind == "specific":
        return there & set(policy.versions)
    return set(sorted(there)[-max(1, policy.num_versions) :])


def next_action(versions: Sequence[VersionView]) -> tuple[Action, int] | None:
    """Choose the next step for one model, from a snapshot of its versions.

    Nothing is started while another step of the same model is under way.

    Returns:
        The action and the version that it is for, or None when there is nothing to do.
    """
    if any(v.state in (State.LOADING, State.UNLOADING) for v in versions):
        return None
    aspired = [v for v in versions if v.aspired]
    unwanted = sorted(v.version for v in versions if not v.aspired and v.state is State.AVAILABLE)
    replaced = not aspired or any(v.state is State.AVAILABLE for v in aspired)
    if unwanted and (replaced or len(unwanted) > 1):
        return Action.UNLOAD, unwanted[0]
    fresh = [v.version for v in aspired if v.state is State.START]
    return (Action.LOAD, max(fresh)) if fresh else None
