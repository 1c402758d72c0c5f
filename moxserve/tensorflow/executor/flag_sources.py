"""Where the values of run-time flags come from besides `set_flag`: command lines, and TF_CONFIG. Text in, text out.

command line      --name=value  --name value  -name=value; booleans also --name and --noname
MOXSERVE_FLAGS    a command line in an environment variable, for programs that have a parser of their own
TF_CONFIG         {"cluster": {"chief": [...], "worker": [...], "ps": [...]}, "task": {"type": ..., "index": ...}}
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moxserve.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from moxserve.tensorflow.executor.flags import Flag

__all__ = ["ENVIRONMENT", "FALSE", "TRUE", "TYPE_NAME", "parse_argv", "parse_environment", "parse_tf_config"]

ENVIRONMENT = "MOXSERVE_FLAGS"
TRUE = frozenset({"true", "t", "1", "yes", "y", "on"})
FALSE = frozenset({"false", "f", "0", "no", "n", "off"})
TYPE_NAME = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}

_OPTION = re.compile(r"--?([A-Za-z][A-Za-z0-9_]*)(?:=(.*))?\Z", re.DOTALL)
# What a task may be called; chiefs come first among the workers, and only one of the two names is in use at a time.
_CHIEFS = ("chief", "master")
_TASKS = (*_CHIEFS, "worker", "ps", "evaluator")


def parse_argv(argv: Sequence[str], table: Mapping[str, Flag], *, strict: bool = False) -> dict[str, str]:
    """Pick the known flags out of a command line.

    Args:
        argv: the words after the program name.
        table: known flags by name.
        strict: refuse every other word, which is otherwise left to the user's own parser.

    Returns:
        name: text of the value, the last one given.

    Raises:
        UsageError: a flag that needs a value is the last word; or there is an unknown word, and `strict`.
    """
    found: dict[str, str] = {}
    words = list(argv)
    position = 0
    while position < len(words) and words[position] != "--":
        word = words[position]
        position += 1
        match = _OPTION.match(word)
        name, value = match.groups() if match is not None else ("", None)
        if value is None and _negated(name, table):
            found[name[2:]] = "false"
        elif name in table:
            following = words[position] if position < len(words) else None
            found[name], used = _value_of(table[name], value, following)
            position += used
        elif strict:
            raise UsageError(
                f"{ENVIRONMENT}: {word!r} is no run-time flag; {did_you_mean(name or word, table)}",
                hint=f"{ENVIRONMENT}='--num_gpus=2 --log_dir=runs/1'",
            )
    return found


def _negated(name: str, table: Mapping[str, Flag]) -> bool:
    return name.startswith("no") and name[2:] in table and table[name[2:]].kind is bool


def _value_of(flag: Flag, value: str | None, following: str | None) -> tuple[str, int]:
    """Decide what a flag's value is, and how many of the following words it took."""
    if value is not None:
        return value, 0
    if flag.kind is bool:
        if following is not None and following.lower() in TRUE | FALSE:
            return following, 1
        return "true", 0
    if following is None:
        raise UsageError(
            f"flag --{flag.name}: expected {TYPE_NAME[flag.kind]} after it, got the end of the command line"
        )
    return following, 1


def parse_environment(text: str, table: Mapping[str, Flag]) -> dict[str, str]:
    """Read flags out of the environment variable MOXSERVE_FLAGS, whose text is a command line.

    Raises:
        UsageError: a word in it is no flag, or its quotes do not match.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{ENVIRONMENT}={text!r} is not a command line: {error}") from error
    return parse_argv(words, table, strict=True)


def parse_tf_config(text: str) -> dict[str, Any]:
    """Read the cluster flags out of TF_CONFIG.

    A chief (or `master`, its old name) is worker 0, and the tasks called worker come after it. An evaluator is no
    member of the cluster.

    Returns:
        job_name, task_index, ps_hosts and worker_hosts, as far as they are told: a TF_CONFIG that describes no cluster
        tells none.

    Raises:
        UsageError: it is not what TensorFlow describes.
    """
    try:
        config = json.loads(text)
        cluster, task = config.get("cluster") or {}, config.get("task") or {}
        members = {str(job): _addresses(tasks) for job, tasks in cluster.items()}
        job, index = str(task.get("type", "")), int(task.get("index", 0))
    except (AttributeError, TypeError, ValueError) as error:
        raise _no_cluster(str(error)) from error
    if job and job not in _TASKS:
        raise _no_cluster(f"the task's type is {job!r}; {did_you_mean(job, _TASKS)}")
    chiefs = [address for name in _CHIEFS for address in members.get(name, [])]
    found: dict[str, Any] = {}
    if job:
        found = {"job_name": "worker" if job in _CHIEFS else job, "task_index": index}
        if job == "worker":
            found["task_index"] += len(chiefs)
    if members:
        found["ps_hosts"] = ",".join(members.get("ps", []))
        found["worker_hosts"] = ",".join([*chiefs, *members.get("worker", [])])
    return found


def _no_cluster(why: str) -> UsageError:
    return UsageError(
        f"the environment variable TF_CONFIG is not a cluster description: {why}",
        hint='expected {"cluster": {"worker": ["host:port"]}, "task": {"type": "worker", "index": 0}}',
    )


def _addresses(tasks: Any) -> list[str]:
    """Return the addresses of a job: a list, or a mapping of the task's index to its address."""
    if isinstance(tasks, dict):
        tasks = [tasks[key] for key in sorted(tasks, key=int)]
    if not isinstance(tasks, list) or not all(isinstance(address, str) for address in tasks):
        raise ValueError(f"expected a list of host:port, got {tasks!r}")
    return tasks
