"""Clusters of real processes on this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from moxserve.ports import free_port

_SCRIPT = Path(__file__).with_name("job.py")
_PATIENCE_S = 240.0


class Cluster:
    """Processes of one job.

    Args:
        folder: of their logs.
        ps: how many parameter servers.
        plan: what each process runs.
        flags: more flags, of all processes.
    """

    def __init__(self, folder: Path, ps: int, plan: list[Any], flags: tuple[str, ...] = ()) -> None:
        self._folder = folder
        self._ps = [f"localhost:{free_port()}" for _ in range(ps)]
        self._workers = [f"localhost:{free_port()}" for _ in range(2)]
        self._arguments = [f"--plan={json.dumps([asdict(one) for one in plan])}", *flags]
        self._processes: dict[str, list[subprocess.Popen[bytes]]] = {}

    def start(self, name: str, environment: Mapping[str, str] | None = None) -> None:
        """Start a process, again if it was there: `ps0`, `worker1`."""
        job, index = name[:-1], name[-1]
        started = self._processes.setdefault(name, [])
        hosts = [f"--worker_hosts={','.join(self._workers)}"] + (
            [f"--ps_hosts={','.join(self._ps)}"] if self._ps else []
        )
        command = [sys.executable, str(_SCRIPT), f"--job_name={job}", f"--task_index={index}", *hosts]
        variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)}
        variables.update(environment or {})
        with open(self._log(name, len(started)), "wb") as log:
            started.append(subprocess.Popen([*command, *self._arguments], stdout=log, stderr=log, env=variables))

    def start_all(self, environment: Mapping[str, str] | None = None) -> None:
        """Start every process once."""
        for job, hosts in (("ps", self._ps), ("worker", self._workers)):
            for index in range(len(hosts)):
                self.start(f"{job}{index}", environment)

    def send(self, name: str, signum: int) -> None:
        """Send a signal to the process that has the name now."""
        process = self._processes[name][-1]
        process.send_signal(signum)
        if signum == signal.SIGKILL:
            process.wait()

    def _log(self, name: str, number: int) -> Path:
        return self._folder / f"{name}.{number}.log"

    def text(self, name: str) -> str:
        """What the process that has the name now has printed."""
        return self._log(name, len(self._processes[name]) - 1).read_text(errors="replace")

    def wait_for(self, name: str, pattern: str) -> re.Match[str]:
        """Wait until a process has printed something."""
        until = time.monotonic() + _PATIENCE_S
        while not (found := re.search(pattern, self.text(name))):
            ended = self._processes[name][-1].poll() is not None
            if time.monotonic() > until or (ended and not re.search(pattern, self.text(name))):
                pytest.fail(f"{name} never printed {pattern!r}:\n{self.all_text()}")
            time.sleep(0.1)
        return found

    def ended(self, statuses: Mapping[str, int] | None = None) -> None:
        """Wait until all processes have ended, with status 0 if not told otherwise."""
        until = time.monotonic() + _PATIENCE_S
        for name in self._processes:
            status = self.status(name, max(0.1, until - time.monotonic()))
            assert status == (statuses or {}).get(name, 0), f"{name} ended with {status}:\n{self.all_text()}"

    def status(self, name: str, patience_s: float = _PATIENCE_S) -> int:
        """Wait until a process has ended, and tell its status."""
        try:
            return self._processes[name][-1].wait(patience_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{name} does not end:\n{self.all_text()}")

    def all_text(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in self._logs())

    def _logs(self) -> list[Path]:
        return sorted(self._folder.glob("*.log"))

    def results(self, name: str) -> list[dict[str, Any]]:
        """The results that a process printed, in order."""
        return [json.loads(found) for found in re.findall(r"^RESULT \d+ (.*)$", self.text(name), re.MULTILINE)]

    def stop(self) -> None:
        """Kill what is left."""
        for started in self._processes.values():
            for process in started:
                if process.poll() is None:
                    process.kill()
                process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Cluster]]:
    """Make clusters; what is left of them at the end is killed."""
    made: list[Cluster] = []

    def make(ps: int, plan: list[Any], *flags: str) -> Cluster:
        made.append(Cluster(tmp_path_factory.mktemp("logs"), ps, plan, flags))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture(scope="module")
def training() -> Any:
    """The class `Training` of the script that the processes run."""
    spec = importlib.util.spec_from_file_location("moxserve_tests_workers_job", _SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.Training
