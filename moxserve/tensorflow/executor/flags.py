"""Run-time flags: the table, and where a value comes from: `set_flag`, the command line, TF_CONFIG, the default.

The command line is read here, apart from the user's own parser: `--name=value`, `--name value`, bare `--name` and
`--noname` for booleans; unknown flags are left to the user. So that `tf.flags` (absl) does not refuse our names, each
is also registered there as a placeholder that gives way: a user's flag of the same name wins, earlier or later.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from absl import flags as absl_flags

from moxserve.errors import UsageError, did_you_mean
from moxserve.tensorflow.executor.env import tf1

__all__ = ["FLAGS", "Flag", "FlagStore", "get_flag", "parse_argv", "register_placeholders", "set_flag", "store"]

_TRUE = {"true", "t", "1", "yes", "y", "on"}
_FALSE = {"false", "f", "0", "no", "n", "off"}


@dataclass(frozen=True)
class Flag:
    """One run-time flag.

    Attributes:
        name: as on the command line.
        kind: bool, int, float or str.
        default: value when nobody sets it; None means unset.
        help: what it means.
        effect: False while it is accepted, but does nothing on one device: a value other than the default gets a
            warning.
        choices: legal values; empty for any.
    """

    name: str
    kind: type
    default: Any
    help: str
    effect: bool = True
    choices: tuple[str, ...] = ()

    def parse(self, value: Any) -> Any:
        """Convert text, or check a Python value.

        Raises:
            UsageError: the value does not fit the type or the choices.
        """
        if value is None:
            return None
        try:
            parsed = _CONVERT[self.kind](value)
        except (TypeError, ValueError):
            raise UsageError(f"flag --{self.name}: expected {_TYPE_NAME[self.kind]}, got {value!r}") from None
        if self.choices and parsed not in self.choices:
            raise UsageError(f"flag --{self.name}: {value!r} is not one of {', '.join(self.choices)}")
        return parsed


def _to_bool(value: Any) -> bool:
    text = str(value).strip().lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ValueError(value)


def _to_int(value: Any) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(value)
    return int(value)


def _to_str(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(str(item) for item in value)
    return str(value)


_CONVERT: dict[type, Callable[[Any], Any]] = {bool: _to_bool, int: _to_int, float: float, str: _to_str}
_TYPE_NAME = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}

FLAGS: dict[str, Flag] = {
    flag.name: flag
    for flag in (
        Flag("num_gpus", int, 1, "devices per worker; 1 also means CPU"),
        Flag("job_name", str, "", "ps or worker (chief, evaluator, controller accepted); empty: single process",
             choices=("", "ps", "worker", "chief", "evaluator", "controller")),
        Flag("task_index", int, 0, "index within the job; worker 0 is chief"),
        Flag("ps_hosts", str, "", "comma-separated host:port of the parameter servers"),
        Flag("worker_hosts", str, "", "comma-separated host:port of the workers"),
        Flag("sync_replicas", bool, True, "synchronous updates across workers", effect=False),
        Flag("variable_update", str, "", "where variables live and how gradients meet", effect=False,
             choices=("", "parameter_server", "replicated", "distributed_replicated", "all_reduce")),
        Flag("local_parameter_device", str, "cpu", "device that aggregates in one worker", effect=False,
             choices=("cpu", "gpu")),
        Flag("clone_on_cpu", bool, False, "put the model on the CPU"),
        Flag("log_first_clone", bool, True, "console shows the first device's log_info; false: mean over all"),
        Flag("log_first_worker", bool, True, "only worker 0 logs"),
        Flag("checkpoint_include_patterns", str, "", "patterns, comma-separated: restore only these"),
        Flag("checkpoint_exclude_patterns", str, "", "patterns, comma-separated: do not restore these"),
        Flag("checkpoint_moving_averages", bool, False, "take moving averages of variables out of checkpoint_path"),
        Flag("trainable_include_patterns", str, "", "comma-separated patterns: train only these variables"),
        Flag("trainable_exclude_patterns", str, "", "comma-separated patterns: do not train these variables"),
        Flag("loss_scale", float, 1.0, "multiply the loss before, divide the gradients after; 1 is off"),
        Flag("use_fp16", bool, False, "half-precision compute, float32 variables", effect=False),
        Flag("gradient_clip", float, 0.0, "limit for gradient_clip_type; 0 is off"),
        Flag("gradient_clip_type", str, "global_norm", "what is clipped", choices=("norm", "global_norm", "value")),
        Flag("num_inter_threads", int, 0, "threads that run operations; 0: TensorFlow chooses"),
        Flag("num_intra_threads", int, 0, "threads inside one operation; 0: TensorFlow chooses"),
        Flag("session_timeout", int, 0, "seconds to wait for the session at start; 0: no limit", effect=False),
        Flag("sync_before_server", bool, False, "barrier of the workers before the servers start", effect=False),
        Flag("chief_inc_global_step", bool, False, "only the chief counts steps", effect=False),
        Flag("server_protocol", str, "grpc", "protocol of the TensorFlow servers", effect=False),
        Flag("samples_per_epoch", int, None, "override of the counted number of training samples", effect=False),
        Flag("samples_per_epoch_eval", int, None, "override of the counted number of evaluation samples", effect=False),
        Flag("save_model_secs", float, None, "seconds between checkpoints, where the script leaves it out"),
        Flag("save_summary_steps", int, None, "steps between summaries, where the script leaves it out"),
        Flag("log_every_n_steps", int, None, "steps between console lines, where the script leaves it out"),
        Flag("max_number_of_steps", int, None, "steps to train, where the script leaves it out"),
        Flag("batch_size", int, None, "rows a step, where the script leaves it out"),
        Flag("log_dir", str, None, "folder of checkpoints and summaries, where the script leaves it out"),
        Flag("checkpoint_path", str, None, "checkpoint to start from, where the script leaves it out"),
    )
}  # fmt: skip

# What a training platform passes to every script; read through tf.flags even where the script does not define it.
_PLATFORM = (
    Flag("data_url", str, None, "where the platform put the training data"),
    Flag("train_url", str, None, "where the platform wants the output"),
)

_OPTION = re.compile(r"--?([A-Za-z][A-Za-z0-9_]*)(?:=(.*))?\Z", re.DOTALL)


def parse_argv(argv: Sequence[str], table: Mapping[str, Flag]) -> dict[str, str]:
    """Pick the known flags out of a command line, everything else left alone.

    Args:
        argv: the words after the program name.
        table: known flags by name.

    Returns:
        name: text of the value, the last one given.

    Raises:
        UsageError: a flag that needs a value is the last word.
    """
    found: dict[str, str] = {}
    words = list(argv)
    position = 0
    while position < len(words) and words[position] != "--":
        match = _OPTION.match(words[position])
        position += 1
        if match is None:
            continue
        name, value = match.groups()
        if name.startswith("no") and name[2:] in table and table[name[2:]].kind is bool and value is None:
            found[name[2:]] = "false"
        elif name in table:
            following = words[position] if position < len(words) else None
            value, used = _value_of(table[name], value, following)
            found[name] = value
            position += used
    return found


def _value_of(flag: Flag, value: str | None, following: str | None) -> tuple[str, int]:
    """Decide what a flag's value is, and how many of the following words it took."""
    if value is not None:
        return value, 0
    if flag.kind is bool:
        if following is not None and following.lower() in _TRUE | _FALSE:
            return following, 1
        return "true", 0
    if following is None:
        raise UsageError(
            f"flag --{flag.name}: expected {_TYPE_NAME[flag.kind]} after it, got the end of the command line"
        )
    return following, 1


def _from_tf_config(text: str) -> dict[str, Any]:
    """Read the cluster flags out of TF_CONFIG.

    Raises:
        UsageError: it is not the JSON that TensorFlow describes.
    """
    try:
        config = json.loads(text)
        cluster = config.get("cluster", {})
        task = config.get("task", {})
        workers = [*cluster.get("chief", []), *cluster.get("worker", [])]
        job, index = task.get("type", ""), int(task.get("index", 0))
    except (AttributeError, TypeError, ValueError) as error:
        raise UsageError(
            f"the environment variable TF_CONFIG is not a cluster description: {error}",
            hint='expected {"cluster": {"worker": ["host:port"]}, "task": {"type": "worker", "index": 0}}',
        ) from error
    if job == "worker":
        index += len(cluster.get("chief", []))
    return {
        "job_name": "worker" if job == "chief" else job,
        "task_index": index,
        "ps_hosts": ",".join(cluster.get("ps", [])),
        "worker_hosts": ",".join(workers),
    }


class FlagStore:
    """The values of all flags in this process."""

    def __init__(self, table: Mapping[str, Flag] = FLAGS) -> None:
        self._table = table
        self._set: dict[str, Any] = {}
        self._argv_seen: tuple[str, ...] | None = None
        self._argv_values: dict[str, str] = {}
        self._running = 0

    def _flag(self, name: str) -> Flag:
        try:
            return self._table[name]
        except KeyError:
            raise UsageError(f"unknown flag {name!r}; {did_you_mean(str(name), self._table)}") from None

    def _argv(self) -> dict[str, str]:
        # sys.argv is read again when it changed: notebooks and test runners replace it.
        now = tuple(sys.argv[1:])
        if now != self._argv_seen:
            self._argv_values = parse_argv(now, self._table)
            self._argv_seen = now
        return self._argv_values

    def get(self, name: str) -> Any:
        """Look a flag's value up.

        Raises:
            UsageError: the flag is unknown, or its text on the command line does not fit its type.
        """
        flag = self._flag(name)
        if name in self._set:
            return self._set[name]
        if name in self._argv():
            return self._parse_argv_value(flag)
        if os.environ.get("TF_CONFIG"):
            from_cluster = _from_tf_config(os.environ["TF_CONFIG"])
            if name in from_cluster:
                return flag.parse(from_cluster[name])
        return flag.default

    def _parse_argv_value(self, flag: Flag) -> Any:
        text = self._argv_values[flag.name]
        if text == "" and flag.kind is not str:  # platforms pass an empty value for a field that was left blank
            return flag.default
        try:
            return flag.parse(text)
        except UsageError:
            if _is_users_own(flag.name):  # a flag of the user's with the same name and another type: not for us
                return flag.default
            raise

    def set(self, name: str, value: Any) -> None:
        """Set a flag, before `run`.

        Raises:
            UsageError: the flag is unknown, the value does not fit, or a run is in progress.
        """
        flag = self._flag(name)
        if self._running:
            raise UsageError(
                f"set_flag({name!r}, {value!r}) while a run is in progress has no effect",
                hint="call set_flag before mox.run, outside input_fn, model_fn and optimizer_fn",
            )
        self._set[name] = flag.parse(value)

    def clear(self) -> None:
        """Forget every value that was set with `set`."""
        self._set.clear()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Refuse `set` while the block runs."""
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def warn_ineffective(self) -> None:
        """Log a warning for each flag that has a value other than its default, but no effect on one device yet."""
        for flag in self._table.values():
            if not flag.effect and self.get(flag.name) != flag.default:
                tf1.logging.warning("flag --%s=%s has no effect on a single device", flag.name, self.get(flag.name))

    def get_help(self) -> str:
        """Describe every flag: name, type, default, meaning."""
        lines = ["Run-time flags (--name=value, --name value; booleans also --name, --noname):"]
        for flag in self._table.values():
            default = "unset" if flag.default is None else repr(flag.default)
            legal = f" one of: {', '.join(c for c in flag.choices if c)}." if flag.choices else ""
            note = "" if flag.effect else " (no effect on one device)"
            lines.append(f"  --{flag.name} ({flag.kind.__name__}, default {default}): {flag.help}.{legal}{note}")
        return "\n".join(lines)


class _Placeholder(absl_flags.Flag):
    """One of our names in absl's table: takes any text, and gives way to a definition of the user's."""


class _TolerantParser(absl_flags.ArgumentParser):
    def __init__(self, flag: Flag) -> None:
        self._flag = flag

    def parse(self, argument: Any) -> Any:
        try:
            return self._flag.parse(argument)
        except UsageError:  # told by get_flag, in our words, if anybody asks for it
            return argument

    def flag_type(self) -> str:
        return self._flag.kind.__name__


def _is_users_own(name: str) -> bool:
    registered = absl_flags.FLAGS._flags().get(name)
    return registered is not None and not isinstance(registered, _Placeholder)


def register_placeholders() -> None:
    """Make absl accept our flags and the platform's on the command line, unless the user defined them already."""
    for flag in (*FLAGS.values(), *_PLATFORM):
        if flag.name in absl_flags.FLAGS:
            # absl's own logging takes `log_dir`, which made every script that defines it fail: let it give way, too.
            if absl_flags.FLAGS.find_module_defining_flag(flag.name, "").startswith("absl."):
                absl_flags.FLAGS[flag.name].allow_override = True
            continue
        absl_flags.DEFINE_flag(
            _Placeholder(
                _TolerantParser(flag),
                absl_flags.ArgumentSerializer(),
                flag.name,
                flag.default,
                flag.help,
                boolean=flag.kind is bool,
                allow_override=True,
            ),
            module_name="moxserve.tensorflow",
        )


store = FlagStore()
register_placeholders()


def get_flag(name: str | None = None, *, flag_name: str | None = None) -> Any:
    """Look up the value of a run-time flag: `mox.get_flag('num_gpus')`.

    Args:
        name: one of the names that `mox_flags.get_help()` lists.
        flag_name: another spelling of `name`; the documents use both.

    Raises:
        UsageError: the flag is unknown, or its text on the command line does not fit its type.
    """
    return store.get(name if name is not None else str(flag_name))


def set_flag(name: str, value: Any) -> None:
    """Set a run-time flag, before `mox.run`: `mox.set_flag('loss_scale', 1024.0)`. Wins over the command line.

    Args:
        name: one of the names that `mox_flags.get_help()` lists.
        value: of the flag's type, or text of it.

    Raises:
        UsageError: the flag is unknown, the value does not fit, or a run is in progress.
    """
    store.set(name, value)
