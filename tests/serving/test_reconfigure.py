"""Changes of configuration in the manager, with a loader that the test controls: all or nothing, in one step."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moxserve.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, Unavailable, UnknownError
from moxserve.serving import manager as manager_module
from moxserve.serving import tracking
from moxserve.serving.execution import DirectRunner, WorkPool
from moxserve.serving.manager import Manager, ManagerOptions, ModelConfig
from moxserve.serving.policy import VersionPolicy
from moxserve.serving.servable import Servable
from moxserve.serving.source import FoundVersion, Listing
from moxserve.serving.tracking import TrackedModel
from moxserve.types import ModelRef

POOL = WorkPool(1, 1, "test")


class Loads:
    """Loads nothing; notes what was asked, fails or waits for what it is told to. Keys are `base/version`."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.failing: set[str] = set()
        self.gates: dict[str, threading.Event] = {}

    def __call__(self, name: str, version: int, path: str) -> Servable:
        key = "/".join(Path(path).parts[-2:])
        self.log.append(f"load {key}")
        if key in self.gates:
            assert self.gates[key].wait(60)
        if key in self.failing:
            raise Internal("broken")
        backend = _Backend(self, key)
        return Servable(name, version, path, backend, DirectRunner(backend, POOL))  # type: ignore[arg-type]


class _Backend:
    def __init__(self, owner: Loads, key: str) -> None:
        self._owner, self._key = owner, key

    def close(self) -> None:
        self._owner.log.append(f"close {self._key}")


@pytest.fixture
def loads() -> Loads:
    return Loads()


@pytest.fixture
def publish(tmp_path: Path) -> Callable[..., str]:
    """`publish("a", 1, 2)` puts complete versions below a base path and returns it."""

    def put(base: str, *versions: int) -> str:
        for version in versions:
            staged = tmp_path / f".staged-{version}"
            staged.mkdir()
            (staged / "saved_model.pb").write_bytes(b"graph")
            (tmp_path / base).mkdir(exist_ok=True)
            staged.rename(tmp_path / base / str(version))
        return str(tmp_path / base)

    return put


@pytest.fixture
def manage(loads: Loads) -> Iterator[Callable[..., Manager]]:
    managers: list[Manager] = []

    def start(*configs: ModelConfig, unset: bool = False, **settings: Any) -> Manager:
        options = ManagerOptions(**{"poll_interval_s": 0.02, "max_load_retries": 0, **settings})
        manager = Manager(None if unset else configs, loads, options)
        managers.append(manager)
        manager.start()
        return manager

    yield start
    for manager in managers:
        manager.stop(60)


def states(manager: Manager, name: str = "m") -> dict[int, str]:
    return {status.version: status.state.name for status in manager.statuses(name)}


def served_from(manager: Manager, name: str = "m", **which: Any) -> str:
    with manager.borrow(ModelRef(name, **which)) as servable:
        return "/".join(Path(servable.path).parts[-2:])


def test_a_model_comes_and_goes(manage, publish, loads, wait_for) -> None:
    a, b = ModelConfig("m", publish("a", 1)), ModelConfig("n", publish("b", 5))
    manager = manage(a)
    assert manager.wait_until_ready(60)
    manager.reconfigure([a, b], 60)
    assert served_from(manager, "n") == "b/5"
    assert manager.configs() == [a, b]
    manager.reconfigure([b], 60)
    with pytest.raises(NotFound, match=r"Servable not found for request: Latest\(m\)"):
        manager.borrow(ModelRef("m"))
    wait_for(lambda: states(manager) == {1: "END"}, "m to end, its status kept")
    assert loads.log == ["load a/1", "load b/5", "close a/1"]
    manager.reconfigure([a, b], 60)
    assert served_from(manager) == "a/1"
    assert states(manager) == {1: "AVAILABLE"}
    manager.reconfigure([], 60)
    wait_for(lambda: states(manager) == {1: "END"} and states(manager, "n") == {5: "END"}, "nothing left")


def test_a_policy_changes(manage, publish, wait_for) -> None:
    path = publish("a", 1, 2, 3)
    manager = manage(ModelConfig("m", path))
    assert manager.wait_until_ready(60)
    for policy, expected in (
        (VersionPolicy("specific", versions=(1, 2)), {3: "END", 2: "AVAILABLE", 1: "AVAILABLE"}),
        (VersionPolicy("all"), dict.fromkeys((3, 2, 1), "AVAILABLE")),
        (VersionPolicy(num_versions=2), {3: "AVAILABLE", 2: "AVAILABLE", 1: "END"}),
        (VersionPolicy("specific", versions=(1,)), {3: "END", 2: "END", 1: "AVAILABLE"}),
    ):
        manager.reconfigure([ModelConfig("m", path, policy)], 60)
        wait_for(lambda: states(manager) == expected, f"{policy}: {expected}")  # noqa: B023 - waits here


def test_a_policy_changes_though_the_disk_is_looked_at_only_once(manage, publish, wait_for) -> None:
    path = publish("a", 1, 2)
    manager = manage(ModelConfig("m", path), poll_interval_s=0)
    assert manager.wait_until_ready(60)
    manager.reconfigure([ModelConfig("m", path, VersionPolicy("specific", versions=(1,)))], 60)
    wait_for(lambda: states(manager) == {1: "AVAILABLE", 2: "END"}, "version 1")
    manager.reconfigure([ModelConfig("n", publish("b", 1))], 60)
    assert served_from(manager, "n") == "b/1"


def test_another_base_path_replaces_even_the_same_version(manage, publish, loads, wait_for) -> None:
    manager = manage(ModelConfig("m", publish("a", 1)))
    assert manager.wait_until_ready(60)
    gate = loads.gates["b/1"] = threading.Event()
    change = threading.Thread(target=manager.reconfigure, args=([ModelConfig("m", publish("b", 1))], 60))
    change.start()
    wait_for(lambda: "load b/1" in loads.log, "the load from the new path")
    held = manager.borrow(ModelRef("m"))
    assert held.path.endswith("a/1")
    gate.set()
    change.join(60)
    assert served_from(manager) == "b/1"
    assert states(manager) == {1: "AVAILABLE"}
    assert "close a/1" not in loads.log
    with held:
        pass
    wait_for(lambda: "close a/1" in loads.log, "the old one to be freed after its last request")
    assert states(manager) == {1: "AVAILABLE"}


def test_a_base_path_with_nothing_refuses_the_whole_change(manage, publish, loads, tmp_path, wait_for) -> None:
    good = ModelConfig("m", publish("a", 1))
    manager = manage(good)
    assert manager.wait_until_ready(60)
    (tmp_path / "empty" / "v1").mkdir(parents=True)
    wanted = [
        ModelConfig("n", publish("b", 1)),
        ModelConfig("x", str(tmp_path / "nothing")),
        ModelConfig("y", str(tmp_path / "empty")),
    ]
    began = time.monotonic()
    with pytest.raises(NotFound) as caught:
        manager.reconfigure(wanted, 1.5)
    assert time.monotonic() - began >= 1.5
    text = caught.value.message
    assert text.startswith(
        "2 model(s) did not become available, the configuration was not changed: x, y had no version to load within "
        "1.5 s. Could not find base path "
    )
    assert f"No versions of servable y found under base path {tmp_path / 'empty'}. " in text
    assert "No version numbers: v1." in text
    assert manager.configs() == [good]
    assert served_from(manager) == "a/1"
    with pytest.raises(NotFound):
        manager.borrow(ModelRef("n"))
    wait_for(lambda: states(manager, "n") == {1: "END"}, "n to be dropped again")
    publish("a", 2)
    wait_for(lambda: served_from(manager) == "a/2", "versions to be found as before")
    manager.reconfigure([good, wanted[0]], 60)
    assert served_from(manager, "n") == "b/1"


def test_a_broken_new_model_refuses_the_whole_change(manage, publish, loads, wait_for) -> None:
    good = ModelConfig("m", publish("a", 1))
    manager = manage(good)
    assert manager.wait_until_ready(60)
    loads.failing.add("b/7")
    wanted = [ModelConfig("m", publish("c", 1)), ModelConfig("n", publish("b", 7))]
    with pytest.raises(UnknownError) as caught:
        manager.reconfigure(wanted, 60)
    assert caught.value.message == (
        "1 model(s) did not become available: {{{name: n version: 7} due to error: INTERNAL: broken}, }"
    )
    assert served_from(manager) == "a/1"
    assert manager.configs() == [good]
    assert states(manager, "n") == {7: "END"}
    assert manager.statuses("n")[0].error.message == "broken"
    loads.failing.clear()
    manager.reconfigure(wanted, 60)
    assert (served_from(manager), served_from(manager, "n")) == ("c/1", "b/7")


def test_a_version_that_appears_in_time(manage, publish) -> None:
    manager = manage()
    threading.Timer(0.3, publish, ("a", 1)).start()
    manager.reconfigure([ModelConfig("m", publish("a"))], 60)
    assert served_from(manager) == "a/1"


def test_all_versions_of_a_new_model_are_tried_before_it_counts(manage, publish, loads) -> None:
    loads.failing.add("a/3")
    manager = manage(ModelConfig("m", publish("a", 1, 2, 3), VersionPolicy("all")), max_load_retries=3)
    assert manager.wait_until_ready(60)
    assert states(manager) == {3: "LOADING", 2: "AVAILABLE", 1: "AVAILABLE"}
    assert loads.log == ["load a/3", "load a/2", "load a/1"]


def test_a_base_path_that_does_not_answer_holds_up_no_other(manage, publish, monkeypatch, caplog, wait_for) -> None:
    first, second = publish("a", 1), publish("b", 1)
    hung, released = threading.Event(), threading.Event()
    find = manager_module.find_versions

    def find_slowly(base_path: str) -> Any:
        if base_path == first and hung.is_set():
            released.wait(60)
        return find(base_path)

    monkeypatch.setattr(manager_module, "find_versions", find_slowly)
    monkeypatch.setattr(tracking, "_SLOW_S", 0.1)
    manager = manage(ModelConfig("m", first), ModelConfig("n", second))
    assert manager.wait_until_ready(60)
    hung.set()
    time.sleep(0.1)
    publish("b", 2)
    wait_for(lambda: served_from(manager, "n") == "b/2", "the other model's new version")
    wait_for(lambda: f"Base path {first} for servable m does not answer." in caplog.text, "the warning")
    assert served_from(manager) == "a/1"
    manager.reconfigure([ModelConfig("n", second), ModelConfig("o", publish("c", 1))], 60)
    assert served_from(manager, "o") == "c/1"
    released.set()


def test_a_base_path_that_has_answered_late_is_not_told_once_more(monkeypatch, caplog) -> None:
    """What was seen is taken in, and then told without the lock: the next look may be due meanwhile."""
    model = TrackedModel(ModelConfig("m", "/m"))
    assert model.begin_look()
    model.take(Listing({1: FoundVersion(1, "/m/1", 7, True)}))
    monkeypatch.setattr(tracking, "_SLOW_S", 0.0)
    assert not model.begin_look()
    assert (model.lacking, caplog.text) == ("", "")
    model.end_look()
    assert model.begin_look()
    assert not model.begin_look()
    assert "Base path /m for servable m does not answer." in caplog.text


def test_labels(manage, publish, wait_for) -> None:
    path = publish("a", 1, 2)
    both = VersionPolicy("all")
    manager = manage(ModelConfig("m", path, both, {"stable": 1}))
    assert manager.wait_until_ready(60)
    assert served_from(manager, label="stable") == "a/1"
    assert served_from(manager) == "a/2"
    manager.reconfigure([ModelConfig("m", path, both, {"stable": 2, "old": 1})], 60)
    assert (served_from(manager, label="stable"), served_from(manager, label="old")) == ("a/2", "a/1")
    shutil.rmtree(Path(path) / "1")
    wait_for(lambda: states(manager)[1] == "END", "version 1 to go")
    with pytest.raises(NotFound, match=r"Servable not found for request: Specific\(m, 1\)"):
        manager.borrow(ModelRef("m", label="old"))
    for name, label in (("m", "none"), ("other", "stable")):
        with pytest.raises(InvalidArgument, match=f"Unrecognized servable version label: {label}"):
            manager.borrow(ModelRef(name, label=label))


def test_a_change_can_be_refused_at_the_last_moment(manage, publish, wait_for) -> None:
    good = ModelConfig("m", publish("a", 1))
    manager = manage(good)
    assert manager.wait_until_ready(60)
    seen = []

    def accept(available: Callable[[str], Any]) -> None:
        seen.append({name: set(available(name)) for name in ("m", "n")})
        raise FailedPrecondition("no")

    with pytest.raises(FailedPrecondition):
        manager.reconfigure([ModelConfig("m", publish("b", 3)), ModelConfig("n", publish("c", 4))], 60, accept)
    assert seen == [{"m": {3}, "n": {4}}]
    assert manager.configs() == [good]
    assert served_from(manager) == "a/1"
    wait_for(lambda: states(manager, "n") == {4: "END"}, "n to be dropped")


def test_before_any_configuration(manage, publish) -> None:
    manager = manage(unset=True)
    assert manager.wait_until_ready(1)
    with pytest.raises(Unavailable, match=r"^Model labels does not init yet\.stable$"):
        manager.borrow(ModelRef("m", label="stable"))
    with pytest.raises(NotFound):
        manager.borrow(ModelRef("m"))
    manager.reconfigure([ModelConfig("m", publish("a", 1))], 60)
    assert served_from(manager) == "a/1"


def test_stopping_ends_a_change_that_waits(manage, publish) -> None:
    good = ModelConfig("m", publish("a", 1))
    manager = manage(good)
    assert manager.wait_until_ready(60)
    threading.Timer(0.2, manager.freeze).start()
    with pytest.raises(Unavailable, match="is being stopped; the configuration was not changed"):
        manager.reconfigure([ModelConfig("x", "/nothing/there")], 60)
    assert manager.stop(60)
