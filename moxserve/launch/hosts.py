"""Commands for other machines: as text for people, and run through ssh."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence

from moxserve.launch.plan import JobOptions, Plan, Task

__all__ = ["listing", "member_command"]


def listing(plan: Plan, options: JobOptions) -> Iterator[str]:
    """Write the command of each process, host by host, as a person would type it there."""
    for host in dict.fromkeys(task.host for task in plan.tasks):
        if host:
            yield f"# on {host}"
            yield f"cd {shlex.quote(options.workdir)}"
        for task in plan.tasks:
            if task.host == host:
                yield f"# {task.name}" + (f" at {task.address}" if task.address else "")
                yield task.shell()


def member_command(options: JobOptions, grace_s: float, ssh: Sequence[str], task: Task, report: int) -> list[str]:
    """Return what starts a process on its machine, with its standard input as the lifeline; see `member`.

    Args:
        options: of the job.
        grace_s: from SIGTERM to SIGKILL.
        ssh: the program and its options.
        task: the process.
        report: file descriptor for the process id, on this machine.
    """
    wrapped = [options.python, "-m", "moxserve.launch.member", f"--grace={grace_s:g}"]
    if not task.host:
        return [sys.executable, *wrapped[1:], f"--report={report}", "--", *task.command]
    variables = [f"{name}={value}" for name, value in task.environment.items()]
    there = shlex.join(["env", *variables, *wrapped, "--", *task.command])
    return [*ssh, task.host, f"cd {shlex.quote(options.workdir)} && exec {there}"]
