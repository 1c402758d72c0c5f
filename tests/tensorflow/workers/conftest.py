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
_PATIENCE_S = 600.0
# Forks a process for each request that has a script, and tells its number; tells the status of others, once it has one.
# TensorFlow is imported before: each process would need seconds for it. What is forked lives on below the loop.
_FORKS = """
import json, os, sys
import tensorflow.compat.v1

for line in sys.stdin:
    asked = json.loads(line)
    if "script" in asked:
        process = os.fork()
        if not process:
            break
        print(process, flush=True)
    else:
        process, status = os.waitpid(asked["process"], os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if process else None), flush=True)
else:
    sys.exit()
for number, path in enumerate([os.devnull, asked["log"], asked["log"]]):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
os.environ.clear()
os.environ.update(asked["environment"])
sys.argv = [asked["script"], *asked["arguments"]]
with open(asked["script"]) as script:
    text = script.read()
exec(compile(text, asked["script"], "exec"))
"""


class Forks:
    """Starts processes, as forks of one that has imported TensorFlow."""

    def __init__(self) -> None:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", _FORKS]
        self._parent = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )

    def start(self, log: Path, arguments: list[str], environment: Mapping[str, str]) -> Process:
        """Start the script."""
        variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
        asked = {"script": str(_SCRIPT), "log": str(log), "arguments": arguments, "environment": variables}
        return Process(self, self.ask(asked))

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request, and read the answer."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(request) + "\n")
        self._parent.stdin.flush()
        return json.loads(self._parent.stdout.readline())

    def stop(self) -> None:
        """Kill all processes."""
        os.killpg(self._parent.pid, signal.SIGKILL)
        self._parent.communicate()


class Process:
    """One of the forks.

    Args:
        forks: where it comes from.
        number: of the process.
    """

    def __init__(self, forks: Forks, number: int) -> None:
        self._forks, self._number = forks, number
        self._status: int | None = None

    def poll(self) -> int | None:
        """The status, as subprocess has it; None while the process runs."""
        if self._status is None:
            self._status = self._forks.ask({"process": self._number})
        return self._status

    def wait(self, patience_s: float) -> int:
        """Wait until the process has ended, and tell its status.

        Raises:
            TimeoutError: it does not end.
        """
        until = time.monotonic() + patience_s
        while (status := self.poll()) is None:
            if time.monotonic() > until:
                raise TimeoutError(f"process {self._number} does not end")
            time.sleep(0.05)
        return status

    def send(self, signum: int) -> None:
        """Send a signal."""
        if self._status is None:
            os.kill(self._number, signum)


class Cluster:
    """Processes of one job.

    Args:
        forks: where they come from.
        folder: of their logs.
        ps: how many parameter servers.
        plan: what each process runs.
        flags: more flags, of all processes.
    """

    def __init__(self, forks: Forks, folder: Path, ps: int, plan: list[Any], flags: tuple[str, ...] = ()) -> None:
        self._forks, self._folder = forks, folder
        self._ps = [f"localhost:{free_port()}" for _ in range(ps)]
        self._workers = [f"localhost:{free_port()}" for _ in range(2)]
        self._arguments = [f"--plan={json.dumps([asdict(one) for one in plan])}", *flags]
        self._processes: dict[str, list[Process]] = {}

    def start(self, name: str, environment: Mapping[str, str] | None = None) -> None:
        """Start a process, again if it was there: `ps0`, `worker1`."""
        job, index = name[:-1], name[-1]
        started = self._processes.setdefault(name, [])
        hosts = [f"--worker_hosts={','.join(self._workers)}"] + (
            [f"--ps_hosts={','.join(self._ps)}"] if self._ps else []
        )
        arguments = [f"--job_name={job}", f"--task_index={index}", *hosts, *self._arguments]
        log = self._log(name, len(started))
        log.touch()
        started.append(self._forks.start(log, arguments, environment or {}))

    def start_all(self, environment: Mapping[str, str] | None = None) -> None:
        """Start every process once."""
        for job, hosts in (("ps", self._ps), ("worker", self._workers)):
            for index in range(len(hosts)):
                self.start(f"{job}{index}", environment)

    def send(self, name: str, signum: int) -> None:
        """Send a signal to the process that has the name now."""
        process = self._processes[name][-1]
        process.send(signum)
        if signum == signal.SIGKILL:
            process.wait(_PATIENCE_S)

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
        except TimeoutError:
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
                    process.send(signal.SIGKILL)
                process.wait(_PATIENCE_S)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Cluster]]:
    """Make clusters; what is left of them at the end is killed."""
    made: list[Cluster] = []
    forks = Forks()

    def make(ps: int, plan: list[Any], *flags: str) -> Cluster:
        made.append(Cluster(forks, tmp_path_factory.mktemp("logs"), ps, plan, flags))
        return made[-1]

    yield make
    for one in made:
        one.stop()
    forks.stop()


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
