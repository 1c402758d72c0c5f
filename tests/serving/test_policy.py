"""Which versions are wanted, and the order of loads and unloads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxserve.serving.policy import Action, State, VersionPolicy, VersionView, aspired_versions, next_action


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        (VersionPolicy(), {9}),
        (VersionPolicy("latest", 0), {9}),
        (VersionPolicy("latest", 2), {3, 9}),
        (VersionPolicy("latest", 10), {1, 3, 9}),
        (VersionPolicy("all"), {1, 3, 9}),
        (VersionPolicy("specific", versions=(3, 4)), {3}),
        (VersionPolicy("specific"), set()),
    ],
)
def test_aspired_versions(policy, chosen) -> None:
    assert aspired_versions([3, 1, 9], policy) == chosen


def test_nothing_found_means_nothing_wanted() -> None:
    assert all(aspired_versions([], VersionPolicy(kind)) == set() for kind in ("latest", "all", "specific"))


def view(version: int, state: State, aspired: bool = True) -> VersionView:
    return VersionView(version, state, aspired)


OLD_SERVES = view(1, State.AVAILABLE, aspired=False)


@pytest.mark.parametrize(
    ("versions", "action"),
    [
        ([view(1, State.START), view(2, State.START)], (Action.LOAD, 2)),
        ([OLD_SERVES, view(2, State.START)], (Action.LOAD, 2)),
        ([OLD_SERVES, view(2, State.LOADING)], None),
        ([OLD_SERVES, view(2, State.AVAILABLE)], (Action.UNLOAD, 1)),
        ([OLD_SERVES, view(2, State.END)], None),  # the new one failed: the old one goes on serving
        ([OLD_SERVES], (Action.UNLOAD, 1)),
        ([OLD_SERVES, view(3, State.AVAILABLE, aspired=False), view(2, State.START)], (Action.UNLOAD, 1)),
        ([view(1, State.UNLOADING, aspired=False), view(2, State.START)], None),
        ([view(2, State.AVAILABLE)], None),
        ([], None),
    ],
)
def test_next_action(versions, action) -> None:
    assert next_action(versions) == action


views = st.lists(
    st.builds(
        VersionView, st.integers(1, 9), st.sampled_from([State.START, State.AVAILABLE, State.END]), st.booleans()
    ),
    unique_by=lambda v: v.version,
)


@given(views, st.sets(st.integers(1, 9)))
def test_it_ends_with_just_what_is_wanted_and_is_never_without_a_version(versions, broken) -> None:
    table = {v.version: v for v in versions}
    wanted = {v.version for v in versions if v.aspired}
    for _ in range(100):
        before = [v for v in table.values() if v.state is State.AVAILABLE]
        action = next_action(list(table.values()))
        if action is None:
            break
        kind, version = action
        loaded = State.END if version in broken else State.AVAILABLE
        table[version] = VersionView(version, loaded if kind is Action.LOAD else State.END, table[version].aspired)
        if before and wanted:
            assert any(v.state is State.AVAILABLE for v in table.values())
    else:
        pytest.fail("it never comes to rest")
    available = {v.version for v in table.values() if v.state is State.AVAILABLE}
    assert all(table[v].state is not State.START for v in wanted)
    assert available <= wanted or not available & wanted
    assert len(available - wanted) <= 1
