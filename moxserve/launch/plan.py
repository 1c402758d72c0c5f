"""What the processes of a job are: their addresses, their flags, the command of each. Starts nothing."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from moxserve.errors import UsageError
from moxserve.file.filesystem import is_remote
from moxserve.ports import free_port

__all__ = ["FLAGS_VARIABLE", "UPDATES", "JobOptions", "Plan", "Task", "make_plan", "visible_gpus"]

FLAGS_VARIABLE = "MOXSERVE_FLAGS"
UPDATES = ("parameter_server", "replicated", "distributed_replicated", "all_reduce")
_OWN = ("replicated", "all_reduce")  # each worker has the variables itself, and parameter servers have nothing to do
_DEVICES = "CUDA_VISIBLE_DEVICES"
_JOB = "MOXSERVE_JOB"  # see moxserve.tensorflow.executor.job


@dataclass(frozen=True)
class JobOptions:
    """What is asked for.

    Attributes:
        target: a pipeline (.yaml, .yml), a Python script (.py), or a program.
        arguments: of the target.
        workers: how many train.
        ps: how many parameter servers hold the variables.
        evaluator: whether one more process evaluates each checkpoint.
        synchronous: whether the workers make each step together; None leaves it to the script.
        variable_update: the flag of that name; None leaves it to the script.
        gpus_per_worker: devices of each worker; None leaves it to the script.
        hosts: machines that the processes are spread over; empty for this one.
        port: the first port of each of the hosts.
        python: the interpreter.
        workdir: the folder that commands on hosts run in.
        by_environment: tell scripts their flags by the environment instead of the command line.
    """

    target: str
    arguments: tuple[str, ...] = ()
    workers: int = 1
    ps: int = 0
    evaluator: bool = False
    synchronous: bool | None = None
    variable_update: str | None = None
    gpus_per_worker: int | None = None
    hosts: tuple[str, ...] = ()
    port: int = 2222
    python: str = sys.executable
    workdir: str = "."
    by_environment: bool = False


@dataclass(frozen=True)
class Task:
    """One process of the job.

    Attributes:
        job: `worker`, `ps` or `evaluator`.
        index: within the job; worker 0 is the chief.
        host: the machine; empty for this one.
        address: that its TensorFlow server listens at; empty where there is none.
        command: program and arguments.
        needed: variables without which the command would not know its place, for a person who types it.
        environment: all variables that it gets.
    """

    job: str
    index: int
    host: str
    address: str
    command: tuple[str, ...]
    needed: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What people call it: `worker 0`; the evaluator is the only one."""
        return self.job if self.job == "evaluator" else f"{self.job} {self.index}"

    def shell(self) -> str:
        """Return the command as one types it."""
        words = [f"{name}={shlex.quote(value)}" for name, value in self.needed.items()]
        return " ".join([*words, shlex.join(self.command)])


@dataclass(frozen=True)
class Plan:
    """All processes of a job.

    Attributes:
        tasks: in the order in which they are started: parameter servers, workers, evaluator.
        together: the workers cannot go on without each other, and are started again together.
    """

    tasks: tuple[Task, ...]
    together: bool

    def of(self, job: str) -> list[Task]:
        """Return the processes of one kind."""
        return [task for task in self.tasks if task.job == job]


def make_plan(options: JobOptions) -> Plan:
    """Give every process its place.

    Raises:
        UsageError: the options contradict each other, or the target cannot be run.
    """
    _check(options)
    planner = _Planner(options)
    counts = (("ps", options.ps), ("worker", options.workers), ("evaluator", int(options.evaluator)))
    tasks = tuple(planner.task(job, index) for job, count in counts for index in range(count))
    return Plan(tasks, together=options.workers > 1 and (not options.ps or options.variable_update in _OWN))


def _check(options: JobOptions) -> None:
    """Refuse what the processes would refuse, each in its own output."""
    workers, ps, update = options.workers, options.ps, options.variable_update
    if workers < 1 or ps < 0:
        raise UsageError(f"{workers} workers and {ps} parameter servers: expected at least 1 worker")
    if not ps and (update == "distributed_replicated" or (update == "parameter_server" and workers > 1)):
        raise UsageError(f"--variable-update={update} keeps the variables on parameter servers", hint="--ps 1")
    if options.synchronous is False and workers > 1 and (not ps or update in _OWN):
        raise UsageError(
            "--async: workers that step apart need a parameter server between them",
            hint=f"--ps 1, and no --variable-update={update}" if update in _OWN else "--ps 1",
        )


class _Planner:
    """Places, addresses and GPUs of all processes; then each of them."""

    def __init__(self, options: JobOptions) -> None:
        self._options = options
        self._hosts = _spread(options)
        self._addresses = _addresses(options, self._hosts)
        self._gpus = _gpus(options, self._hosts)
        self._job = uuid.uuid4().hex  # of this start: what another one has trained is not over

    def task(self, job: str, index: int) -> Task:
        """Describe one process."""
        options, members = self._options, self._addresses.get(job, [])
        flags = self._flags(job, index)
        text = shlex.join(flags)
        command, by_arguments = _command(options, flags)
        devices = self._devices(job, index)
        variables = {**devices, **self._tf_config(job, index), "PYTHONUNBUFFERED": "1"}
        if options.workers + options.ps > 1:
            variables[_JOB] = self._job
        needed = dict(devices)
        if text:
            earlier = os.environ.get(FLAGS_VARIABLE, "")
            variables[FLAGS_VARIABLE] = f"{earlier} {text}".strip()
            needed |= {} if by_arguments else {FLAGS_VARIABLE: text}
        address = members[index] if members and options.workers + options.ps > 1 else ""
        return Task(job, index, self._hosts[job, index], address, command, needed, variables)

    def _flags(self, job: str, index: int) -> list[str]:
        """Write the run-time flags of a process, those of the documents."""
        options, addresses, flags = self._options, self._addresses, []
        if addresses["worker"]:
            flags += [f"--job_name={job}", f"--task_index={index}"]
            flags += [f"--{name}_hosts={','.join(hosts)}" for name, hosts in addresses.items() if hosts]
        if options.synchronous is not None:
            flags.append(f"--sync_replicas={str(options.synchronous).lower()}")
        if options.variable_update is not None:
            flags.append(f"--variable_update={options.variable_update}")
        if options.gpus_per_worker is not None and job == "worker":
            flags.append(f"--num_gpus={options.gpus_per_worker}")
        return flags

    def _tf_config(self, job: str, index: int) -> dict[str, str]:
        """Write the same for programs that know TensorFlow's own way."""
        cluster = {name: hosts for name, hosts in self._addresses.items() if hosts}
        if not cluster:
            return {}
        return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": job, "index": index}})}

    def _devices(self, job: str, index: int) -> dict[str, str]:
        if job == "ps":
            return {_DEVICES: "-1"}  # it computes nothing, and would take memory of all GPUs
        return {_DEVICES: self._gpus[index]} if job == "worker" and index in self._gpus else {}


def _spread(options: JobOptions) -> dict[tuple[str, int], str]:
    """Put every process on a host: neighbouring workers share one, parameter servers go round."""
    count = max(1, len(options.hosts))
    hosts = options.hosts or ("",)
    placed = {("worker", i): hosts[i * count // options.workers] for i in range(options.workers)}
    placed |= {("ps", i): hosts[i % count] for i in range(options.ps)}
    return placed | {("evaluator", 0): hosts[-1]}


def _addresses(options: JobOptions, hosts: Mapping[tuple[str, int], str]) -> dict[str, list[str]]:
    """Give every member of the cluster a port of its own; none to a process that is alone."""
    addresses: dict[str, list[str]] = {"ps": [], "worker": []}
    if options.workers == 1 and not options.ps and not options.evaluator:
        return addresses
    used: dict[str, set[int]] = {}
    for job, count in (("ps", options.ps), ("worker", options.workers)):
        for index in range(count):
            host = hosts[job, index]
            taken = used.setdefault(host, set())
            port = options.port + len(taken) if host else _new_port(taken)
            taken.add(port)
            # What is before the @ is for ssh alone.
            addresses[job].append(f"{host.rpartition('@')[2] or '127.0.0.1'}:{port}")
    return addresses


def _new_port(taken: set[int]) -> int:
    while (port := free_port()) in taken:
        continue
    return port


def visible_gpus() -> list[str] | None:
    """Return the GPUs of this machine, as CUDA_VISIBLE_DEVICES names them; None where nobody can tell.

    TensorFlow, who would know best, takes seconds to ask.
    """
    told = os.environ.get(_DEVICES)
    if told is not None:
        return [name for name in told.split(",") if name.strip() and name.strip() != "-1"]
    try:
        found = [name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdecimal()]
    except OSError:
        return None
    return [str(number) for number in range(len(found))]


def _gpus(options: JobOptions, hosts: Mapping[tuple[str, int], str]) -> dict[int, str]:
    """Divide the GPUs of each machine among its workers; nothing where a worker has a machine to itself.

    Raises:
        UsageError: this machine has GPUs, but too few.
    """
    each = options.gpus_per_worker
    if each is None:
        return {}
    if each < 1:
        raise UsageError(f"--gpus-per-worker={each}: expected at least 1")
    by_host: dict[str, list[int]] = {}
    for index in range(options.workers):
        by_host.setdefault(hosts["worker", index], []).append(index)
    divided = {}
    for host, members in by_host.items():
        names = visible_gpus() if not host else [str(number) for number in range(each * len(members))]
        if not names or (host and len(members) == 1):
            continue  # a machine without GPUs: logical devices
        if len(names) < each * len(members):
            raise UsageError(
                f"--gpus-per-worker={each} for {len(members)} workers needs {each * len(members)} GPUs; "
                f"here are {len(names)}",
                hint="fewer workers, or fewer GPUs each",
            )
        for position, index in enumerate(members):
            divided[index] = ",".join(names[position * each : (position + 1) * each])
    return divided


def _command(options: JobOptions, flags: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """Return the command of a process, and whether its flags are among the arguments.

    Raises:
        UsageError: the target cannot be run.
    """
    target, arguments = options.target, options.arguments
    if target.endswith((".yaml", ".yml")):
        _there(options, "pipeline")
        return (options.python, "-m", "moxserve", "pipeline", "run", target, *arguments), False
    if target.endswith(".py"):
        _there(options, "script")
        # Before the script's own arguments, so that what is said there wins.
        own = () if options.by_environment else tuple(flags)
        return (options.python, target, *own, *arguments), not options.by_environment
    if not options.hosts and shutil.which(target) is None:
        raise UsageError(
            f"{target!r} is no pipeline (.yaml), no script (.py), and no program that can be run",
            hint="moxserve launch [OPTIONS] train.yaml; the options come before it",
        )
    return (target, *arguments), False


def _there(options: JobOptions, what: str) -> None:
    if is_remote(options.target):
        if what != "pipeline":
            raise UsageError(f"the {what} {options.target!r} is in a store", hint="copy it here, with what it imports")
        return  # each process reads it there
    if not options.hosts and not os.path.isfile(options.target):
        raise UsageError(f"no such {what}: {options.target!r} (the current directory is {os.getcwd()})")
