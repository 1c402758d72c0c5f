"""How flows with workers end: interrupted, killed, collected. Real processes, seen from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAM = """
import os, sys, time
from moxserve.dataflow import *

class Endless(DataFlow):
    def __iter__(self):
        i = 0
        while True:
            yield [i, bytes(1000)]
            i += 1

def slow(dp):
    time.sleep({work})
    return dp

KINDS = {{
    "runner": lambda: MultiProcessRunnerZMQ(MapData(Endless(), slow), 2, hwm=4),
    "map": lambda: MultiProcessMapData(Endless(), 2, slow, buffer_size=8),
    "nested": lambda: MultiProcessRunnerZMQ(MultiProcessMapData(Endless(), 2, slow, buffer_size=8), 1, hwm=4),
    "spawn": lambda: MultiProcessRunnerZMQ(MapData(Endless(), slow), 2, hwm=4, start_method="spawn"),
}}

def main():
    flow = KINDS["{kind}"]()
    for n, dp in enumerate(flow):
        if n == 3:
            print("running", flush=True)
        {body}

if __name__ == "__main__":
    main()
"""
KINDS = ("runner", "map", "nested", "spawn")


def descendants(pid: int) -> list[int]:
    """Process ids of all children, and theirs."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        more = children.get(todo.pop(), [])
        found += more
        todo += more
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def shared_files(pid: int) -> set[str]:
    """Files in memory that a process has mapped, which others may outlive."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line[line.index("/dev/shm/") :] for line in lines if "/dev/shm/" in line}


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Milliseconds, usually; a busy machine takes longer, and tensorpack's workers lived for ten minutes."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 60, what
        time.sleep(0.02)


class Program:
    """A running program with workers."""

    def __init__(self, path: Path, kind: str, body: str = "pass", work: float = 0.005) -> None:
        path.write_text(PROGRAM.format(kind=kind, body=body, work=work))
        self.process = subprocess.Popen(
            [sys.executable, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "running\n", self.process.communicate()
        self.workers = descendants(self.process.pid)
        assert len(self.workers) >= 2

    def gone(self) -> bool:
        return not any(alive(pid) for pid in self.workers)

    def stop(self) -> None:
        for pid in [self.process.pid, *self.workers]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def run(kind: str, body: str = "pass", work: float = 0.005) -> Program:
        started.append(Program(tmp_path / "program.py", kind, body, work))
        return started[-1]

    yield run
    for program in started:
        program.stop()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outlives_a_parent_that_is_killed(kind: str, start: Callable[..., Program]) -> None:
    program = start(kind)
    shared = [path for pid in (program.process.pid, *program.workers) for path in shared_files(pid)]
    program.process.kill()
    program.process.wait()
    wait_until(program.gone, "workers were alive after their parent")
    assert not [path for path in shared if os.path.exists(path)]


def test_workers_without_the_death_signal_end_by_their_pipe(start: Callable[..., Program], tmp_path: Path) -> None:
    # Started by a thread, a worker must not ask Linux to kill it with its parent: it would end with the thread.
    text = PROGRAM.replace(
        "    main()\n", "    import threading; t = threading.Thread(target=main); t.start(); t.join()\n"
    )
    path = tmp_path / "thread.py"
    path.write_text(text.format(kind="runner", body="pass", work=0.005))
    program = Program.__new__(Program)
    program.process = subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert program.process.stdout is not None
    assert program.process.stdout.readline() == "running\n"
    program.workers = descendants(program.process.pid)
    program.process.kill()
    program.process.wait()
    wait_until(program.gone, "workers were alive after their parent")
    program.stop()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_c_ends_everything(kind: str, start: Callable[..., Program]) -> None:
    program = start(kind)
    # As a terminal does it: to the whole group at once.
    os.killpg(program.process.pid, signal.SIGINT)
    _, errors = program.process.communicate(timeout=120)
    assert program.process.returncode in (-signal.SIGINT, 130)
    assert errors.count("KeyboardInterrupt") == 1, errors
    wait_until(program.gone, "workers were alive after Ctrl-C")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_the_program_is_the_end_of_the_workers(kind: str, start: Callable[..., Program]) -> None:
    program = start(kind, "if n > 5: break")
    _, errors = program.process.communicate(timeout=120)
    assert (program.process.returncode, errors) == (0, "")
    wait_until(program.gone, "workers were alive after their program")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_that_is_killed_is_told_by_its_signal(kind: str, start: Callable[..., Program]) -> None:
    program = start(kind)
    # Not the process that Python starts beside those that it spawns.
    worker = next(pid for pid in reversed(program.workers) if b"resource_tracker" not in command(pid))
    os.kill(worker, signal.SIGKILL)
    _, errors = program.process.communicate(timeout=120)
    assert program.process.returncode == 1
    assert "DataFlowWorkerError: worker" in errors
    assert f"(process {worker}) of Multi" in errors
    assert "was killed by SIGKILL" in errors
    wait_until(program.gone, "workers were alive after one of them")


@pytest.mark.slow
def test_a_worker_in_the_middle_of_long_work_is_killed_too(start: Callable[..., Program]) -> None:
    program = start("map", work=0.5)
    os.killpg(program.process.pid, signal.SIGINT)
    program.process.communicate(timeout=120)
    wait_until(program.gone, "workers were alive after Ctrl-C")


def test_an_exception_in_the_program_ends_the_workers(start: Callable[..., Program]) -> None:
    program = start("nested", "if n > 5: raise RuntimeError('enough')")
    _, errors = program.process.communicate(timeout=120)
    assert program.process.returncode == 1
    assert errors.rstrip().endswith("RuntimeError: enough")
    wait_until(program.gone, "workers were alive after their program")


THREADS = """
import sys, cv2, numpy as np
from moxserve.dataflow import *

image = np.zeros((1000, 1000, 3), np.uint8)
source = DataFromList([[i] for i in range(1000)])
blur = lambda dp: [cv2.GaussianBlur(image, (51, 51), 0).shape]
if sys.argv[1] == "map":
    flow = MultiThreadMapData(source, 2, blur, buffer_size=50)
else:
    flow = MultiThreadRunner(lambda: MapData(DataFromList(source.lst), blur), 10, 2)
next(iter(flow))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["map", "runner"])
def test_a_program_ends_well_while_threads_are_in_native_code(kind: str) -> None:
    pytest.importorskip("cv2")
    ended = subprocess.run([sys.executable, "-c", THREADS, kind], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")


LAST = """
import atexit, sys, threading, time

@atexit.register  # the first that is registered is the last that is called
def look():
    print([thread.name for thread in threading.enumerate() if thread.name.startswith("moxserve-")])

from moxserve.dataflow import *
from moxserve.dataflow import threads
threads._PATIENCE_S = 60
ending = threading.Event()

def numbers():
    return DataFromList([[i] for i in range(1000)])

class Late(ProxyDataFlow):
    def reset_state(self):
        ending.wait()
        time.sleep(0.3)
        super().reset_state()

KINDS = {
    "map": lambda: MultiThreadMapData(numbers(), 2, lambda dp: dp, buffer_size=50),
    "runner": lambda: MultiThreadRunner(numbers, 3, 2),
    "late": lambda: MultiThreadRunner(lambda: Late(MultiThreadRunner(numbers, 3, 2)), 3, 1),
}
flow = KINDS[sys.argv[1]]()
flow.reset_state()
if sys.argv[1] != "late":
    next(iter(flow))
atexit.register(ending.set)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["map", "runner", "late"])
def test_the_end_of_the_program_is_the_end_of_the_threads(kind: str) -> None:
    ended = subprocess.run([sys.executable, "-c", LAST, kind], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "[]\n", "")
