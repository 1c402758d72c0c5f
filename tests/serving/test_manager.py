"""The life of versions, with a loader that the test controls."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moxserve.errors import Internal, InvalidArgument, MissingExtraError, NotFound, UnknownError
from moxserve.serving import manager as manager_module
from moxserve.serving.execution import DirectRunner, WorkPool
from moxserve.serving.manager import Manager, ManagerOptions, ModelConfig
from moxserve.serving.policy import State, VersionPolicy
from moxserve.serving.servable import Servable
from moxserve.types import ModelRef

POOL = WorkPool(1, 1, "test")


class Controlled:
    """Loads nothing; says what happened, and fails or waits when told."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.failing: dict[int, Exception] = {}
        self.once: set[int] = set()
        self.gates: dict[int, threading.Event] = {}

    def __call__(self, name: str, version: int, path: str) -> Servable:
        self.log.append(f"load {version}")
        if version in self.gates:
            assert self.gates[version].wait(60)
        if version in self.failing:
            error = self.failing[version]
            if version in self.once:
                del self.failing[version]
            raise error
        backend = _Backend(self, version)
        return Servable(name, version, path, backend, DirectRunner(backend, POOL))  # type: ignore[arg-type]


class _Backend:
    def __init__(self, owner: Controlled, version: int) -> None:
        self._owner, self._version = owner, version

    def close(self) -> None:
        self._owner.log.append(f"close {self._version}")


@pytest.fixture
def loader() -> Controlled:
    return Controlled()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    return tmp_path / "base"


def publish(base: Path, version: int) -> None:
    """Put a complete version there in one step."""
    staged = base / f".staged-{version}"
    staged.mkdir()
    (staged / "saved_model.pb").write_bytes(b"graph")
    staged.rename(base / str(version))


@pytest.fixture
def manage(loader: Controlled, base: Path) -> Iterator[Callable[..., Manager]]:
    managers: list[Manager] = []

    def start(policy: VersionPolicy | None = None, **settings: Any) -> Manager:
        options = ManagerOptions(**{"poll_interval_s": 0.02, "max_load_retries": 0, **settings})
        manager = Manager([ModelConfig("m", str(base), policy or VersionPolicy())], loader, options)
        managers.append(manager)
        manager.start()
        return manager

    yield start
    for manager in managers:
        manager.stop(60)


class Looks:
    """Looks at the disk: how many there were, and what is done before one."""

    def __init__(self) -> None:
        self.count = 0
        self.before: Callable[[], None] = lambda: None
        self._find = manager_module.find_versions

    def __call__(self, base_path: str) -> Any:
        self.count += 1
        self.before()
        return self._find(base_path)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    """Counts the looks of the only manager of a test."""
    counted = Looks()
    monkeypatch.setattr(manager_module, "find_versions", counted)
    return counted


@pytest.fixture
def look_again(looks: Looks, wait_for) -> Callable[[], None]:
    """Wait until the manager has looked twice from now on, and has taken in what it saw."""

    def wait() -> None:
        # One may be under way, and the last one may not have been taken in yet.
        enough = looks.count + 4
        wait_for(lambda: looks.count >= enough, "two looks")

    return wait


class Copying:
    """Another program that copies a version: at each look it has come a little further, for so many looks."""

    def __init__(self, version: Path, log: list[str], looks: int = 6) -> None:
        self._version, self._log, self._left = version, log, looks
        self.seen: list[str] = []

    def __call__(self) -> None:
        if self._left:
            self._left -= 1
            self.seen = list(self._log)
            self._version.mkdir(parents=True, exist_ok=True)
            with (self._version / "saved_model.pb").open("ab") as f:
                f.write(b"part")

    @property
    def done(self) -> bool:
        return not self._left


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What this package warned of; other threads of this process may say something, too."""
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and r.name.startswith("moxserve.")]


def states(manager: Manager) -> dict[int, str]:
    return {status.version: status.state.name for status in manager.statuses("m")}


LATEST = ModelRef("m")


def test_the_latest_is_loaded_and_the_old_one_goes_after_it(manage, base, loader, wait_for) -> None:
    publish(base, 1)
    manager = manage()
    assert manager.wait_until_ready(60)
    publish(base, 2)
    wait_for(lambda: states(manager) == {2: "AVAILABLE", 1: "END"}, "the swap")
    assert loader.log == ["load 1", "load 2", "close 1"]
    with manager.borrow(LATEST) as servable:
        assert servable.version == 2


def test_removing_the_newest_rolls_back(manage, base, loader, wait_for) -> None:
    publish(base, 1)
    publish(base, 2)
    manager = manage()
    assert manager.wait_until_ready(60)
    assert states(manager) == {2: "AVAILABLE"}
    shutil.rmtree(base / "2")
    wait_for(lambda: states(manager) == {2: "END", 1: "AVAILABLE"}, "the rollback")
    assert loader.log == ["load 2", "load 1", "close 2"]
    publish(base, 2)
    wait_for(lambda: states(manager) == {2: "AVAILABLE", 1: "END"}, "version 2 put back")


def test_removing_all_versions_unloads_but_removing_the_base_path_does_not(
    manage, base, loader, look_again, wait_for
) -> None:
    publish(base, 1)
    manager = manage()
    assert manager.wait_until_ready(60)
    base.rename(base.with_name("away"))
    look_again()
    assert states(manager) == {1: "AVAILABLE"}
    base.with_name("away").rename(base)
    shutil.rmtree(base / "1")
    wait_for(lambda: states(manager) == {1: "END"}, "unloading")
    with pytest.raises(NotFound, match=r"Servable not found for request: Latest\(m\)"):
        manager.borrow(LATEST)


def test_requests_in_flight_finish_before_unloading(manage, base, loader, wait_for) -> None:
    publish(base, 1)
    manager = manage()
    assert manager.wait_until_ready(60)
    held = manager.borrow(LATEST)
    publish(base, 2)
    wait_for(lambda: states(manager) == {2: "AVAILABLE", 1: "UNLOADING"}, "version 1 to wait for its request")
    with manager.borrow(LATEST) as servable:
        assert servable.version == 2
    with pytest.raises(NotFound, match=r"Specific\(m, 1\)"):
        manager.borrow(ModelRef("m", 1))
    assert "close 1" not in loader.log
    with held:
        pass
    wait_for(lambda: "close 1" in loader.log, "version 1 to be freed")
    wait_for(lambda: states(manager)[1] == "END", "version 1 to end")


def test_a_broken_new_version_leaves_the_old_one_alone(manage, base, loader, look_again, wait_for) -> None:
    publish(base, 1)
    manager = manage()
    assert manager.wait_until_ready(60)
    loader.failing[2] = Internal("no such op")
    publish(base, 2)
    wait_for(lambda: states(manager) == {2: "END", 1: "AVAILABLE"}, "version 2 to fail")
    status = manager.statuses("m")[0]
    assert (status.state, status.error.grpc_code, status.error.message) == (State.END, 13, "no such op")
    look_again()
    assert loader.log == ["load 1", "load 2"]


def test_a_failed_version_is_tried_again_when_its_files_change(manage, base, loader, wait_for) -> None:
    publish(base, 1)
    loader.failing[1] = Internal("half a file")
    manager = manage()
    with pytest.raises(UnknownError, match=r"1 servable\(s\) did not become available: \{\{\{name: m version: 1\} "
                                           r"due to error: INTERNAL: half a file\}, \}"):  # fmt: skip
        manager.wait_until_ready(60)
    loader.failing.clear()
    (base / "1" / "saved_model.pb").write_bytes(b"the whole graph")
    wait_for(lambda: states(manager) == {1: "AVAILABLE"}, "the second try")
    assert manager.wait_until_ready(60)


def test_retries(manage, base, loader, wait_for) -> None:
    publish(base, 1)
    loader.failing[1] = OSError("disk is away")
    manager = manage(max_load_retries=2, load_retry_interval_s=0.01)
    with pytest.raises(UnknownError, match="UNKNOWN: OSError: disk is away"):
        manager.wait_until_ready(60)
    assert loader.log == ["load 1"] * 3


def test_a_retry_succeeds(manage, base, loader) -> None:
    publish(base, 1)
    loader.failing[1] = Internal("not yet")
    loader.once.add(1)
    manager = manage(max_load_retries=5, load_retry_interval_s=0.1)
    assert manager.wait_until_ready(60)
    assert manager.statuses("m")[0].error is None
    assert loader.log == ["load 1"] * 2


def test_a_newer_version_does_not_wait_for_the_retries_of_a_broken_one(manage, base, loader, wait_for) -> None:
    publish(base, 1)
    loader.failing[1] = Internal("broken")
    manager = manage(max_load_retries=5, load_retry_interval_s=60)
    wait_for(lambda: [status.error for status in manager.statuses("m") if status.error], "the first try")
    assert states(manager) == {1: "LOADING"}, "the pause"
    publish(base, 2)
    assert manager.wait_until_ready(60)
    assert states(manager) == {2: "AVAILABLE", 1: "END"}


def test_a_missing_package_is_not_retried(manage, base, loader) -> None:
    publish(base, 1)
    loader.failing[1] = MissingExtraError("tensorflow", "serve")
    manager = manage(max_load_retries=5, load_retry_interval_s=60)
    with pytest.raises(UnknownError, match=r"needs tensorflow.*\n.*pip install"):
        manager.wait_until_ready(60)


def test_a_version_withdrawn_while_it_loads_is_dropped(manage, base, loader, look_again, wait_for) -> None:
    publish(base, 1)
    loader.gates[1] = threading.Event()
    manager = manage()
    wait_for(lambda: loader.log, "the load to begin")
    publish(base, 2)
    shutil.rmtree(base / "1")
    look_again()
    loader.gates[1].set()
    assert manager.wait_until_ready(60)
    wait_for(lambda: states(manager) == {2: "AVAILABLE", 1: "END"}, "version 1 to be dropped")
    assert manager.statuses("m")[1].error.message == "Loading of servable cancelled"
    assert "close 1" in loader.log


def test_all_and_specific_versions(manage, base, loader, wait_for) -> None:
    for version in (1, 2, 3):
        publish(base, version)
    manager = manage(VersionPolicy("all"))
    wait_for(lambda: states(manager) == dict.fromkeys((3, 2, 1), "AVAILABLE"), "all")
    assert loader.log == ["load 3", "load 2", "load 1"]
    chosen = manage(VersionPolicy("specific", versions=(1, 7)))
    wait_for(lambda: states(chosen) == {1: "AVAILABLE"}, "version 1")
    with chosen.borrow(ModelRef("m", 1)) as servable:
        assert servable.version == 1


def test_a_foreign_copy_is_taken_only_when_it_has_come_to_rest(manage, base, loader, looks, wait_for) -> None:
    publish(base, 1)
    manager = manage()
    assert manager.wait_until_ready(60)
    copying = looks.before = Copying(base / "2", loader.log)
    wait_for(lambda: copying.done, "the copy to be finished")
    assert copying.seen == ["load 1"]
    wait_for(lambda: states(manager) == {2: "AVAILABLE", 1: "END"}, "version 2")


def test_names_and_labels(manage, base) -> None:
    publish(base, 1)
    manager = manage()
    assert manager.wait_until_ready(60)
    with pytest.raises(InvalidArgument, match="ModelSpec has no name specified"):
        manager.borrow(ModelRef(""))
    with pytest.raises(InvalidArgument, match="Unrecognized servable version label: stable"):
        manager.borrow(ModelRef("m", label="stable"))
    assert manager.statuses("other") == []


def test_what_keeps_a_model_from_being_served_is_logged_once(manage, base, caplog, look_again, wait_for) -> None:
    (base / "v1").mkdir()
    (base / "2").mkdir()
    manager = manage()
    wait_for(lambda: warnings_of(caplog), "a message")
    look_again()
    assert not manager.wait_until_ready(0)
    (text,) = warnings_of(caplog)
    assert text.startswith(
        f"No versions of servable m found under base path {base}. "
        "Did you forget to name your leaf directory as a number (eg. '/1/')?"
    )
    assert "2: no saved_model.pb" in text
    assert "v1" in text


def test_stop_unloads_and_waits_for_requests(manage, base, loader) -> None:
    publish(base, 1)
    manager = manage()
    assert manager.wait_until_ready(60)
    held = manager.borrow(LATEST)
    assert not manager.stop(0.1)
    assert states(manager) == {1: "UNLOADING"}
    with held:
        pass
    assert manager.stop(60)
    assert states(manager) == {1: "END"}
    assert loader.log == ["load 1", "close 1"]
    assert not manager.wait_until_ready(0.1)


def test_a_load_that_fails_because_of_a_stop_is_not_told_as_a_failure(manage, base, loader, wait_for) -> None:
    publish(base, 1)
    gate = loader.gates[1] = threading.Event()
    loader.failing[1] = Internal("the loop is closed")
    manager = manage()
    wait_for(lambda: loader.log, "the load to begin")
    assert not manager.stop(0.1)
    gate.set()
    wait_for(lambda: states(manager) == {1: "END"}, "the load to fail")
    assert not manager.wait_until_ready(60)


def test_polling_once(manage, base, loader) -> None:
    publish(base, 1)
    manager = manage(poll_interval_s=0)
    assert manager.wait_until_ready(60)
    publish(base, 2)
    time.sleep(0.2)
    assert states(manager) == {1: "AVAILABLE"}


def test_a_version_that_stays_incomplete_is_told_while_an_older_one_serves(
    manage, base, caplog, look_again, wait_for
) -> None:
    publish(base, 1)
    (base / "00001").mkdir()
    (base / "2").mkdir()
    manager = manage()
    assert manager.wait_until_ready(60)
    wait_for(lambda: len(warnings_of(caplog)) >= 2, "both messages")
    look_again()
    assert sorted(warnings_of(caplog)) == sorted(
        [
            f"{base}: 00001 is ignored, another name has the same number",
            "{name: m version: 2} is not complete and is left out: no saved_model.pb, and no "
            "model.onnx, model.xml or model.tflite",
        ]
    )


def test_a_base_path_that_is_being_copied_is_waited_for(manage, base, loader, look_again, looks, wait_for) -> None:
    base.rmdir()
    manager = manage()
    look_again()
    copying = looks.before = Copying(base / "1", loader.log)
    wait_for(lambda: copying.done, "the copy to be finished")
    assert copying.seen == []
    assert manager.wait_until_ready(60)
