"""Run-time flags: the table, and where a value comes from.

In this order: `set_flag`, the command line, the environment variable MOXSERVE_FLAGS, TF_CONFIG (cluster flags), the
default. The command line is read apart from the user's own parser, and unknown flags are left to the user; see
`flag_sources`. So that `tf.flags` (absl) does not refuse our names, each is also registered there as a placeholder that
gives way: a user's flag of the same name wins, earlier or later.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from absl import flags as absl_flags

from moxserve.errors import UsageError, did_you_mean
from moxserve.tensorflow.executor.flag_sources import (
    ENVIRONMENT,
    FALSE,
    TRUE,
    TYPE_NAME,
    parse_argv,
    parse_environment,
    parse_tf_config,
)

__all__ = ["FLAGS", "Flag", "FlagStore", "get_flag", "parse_argv", "register_placeholders", "set_flag", "store"]


@dataclass(frozen=True)
class Flag:
    """One run-time flag.

    Attributes:
        name: as on the command line.
        kind: bool, int, float or str.
        default: value when nobody sets it; None means unset.
        help: what it means.
        choices: legal values; empty for any.
        least: the smallest legal number; None for any.
    """

    name: str
    kind: type
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    least: int | None = None

    def parse(self, value: Any) -> Any:
        """Convert text, or check a Python value.

        Raises:
            UsageError: the value does not fit the type, the choices or the limit.
        """
        if value is None:
            return None
        try:
            parsed = _CONVERT[self.kind](value)
        except (TypeError, ValueError):
            raise UsageError(f"flag --{self.name}: expected {TYPE_NAME[self.kind]}, got {value!r}") from None
        if self.choices and parsed not in self.choices:
            raise UsageError(f"flag --{self.name}: {value!r} is not one of {', '.join(filter(None, self.choices))}")
        if self.least is not None and parsed < self.least:
            raise UsageError(f"flag --{self.name}: expected at least {self.least}, got {value!r}")
        return parsed


def _to_bool(value: Any) -> bool:
    text = str(value).strip().lower()
    if text in TRUE or text in FALSE:
        return text in TRUE
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

FLAGS: dict[str, Flag] = {
    flag.name: flag
    for flag in (
        Flag("num_gpus", int, 1, "devices per worker; 1 also means CPU"),
        Flag("job_name", str, "", "what this process is: ps or worker (also chief, master, controller), or evaluator, "
             "which evaluates each new checkpoint; empty: single process",
             choices=("", "ps", "worker", "chief", "master", "evaluator", "controller")),
        Flag("task_index", int, 0, "index within the job; worker 0 is chief"),
        Flag("ps_hosts", str, "", "comma-separated host:port of the parameter servers"),
        Flag("worker_hosts", str, "", "comma-separated host:port of the workers"),
        Flag("sync_replicas", bool, True, "workers make each step together; false: each for itself"),
        Flag("variable_update", str, "", "where variables live and how gradients meet; empty: parameter_server, or "
             "all_reduce for several workers without ps_hosts",
             choices=("", "parameter_server", "replicated", "distributed_replicated", "all_reduce")),
        Flag("local_parameter_device", str, "cpu", "device on which the gradients of one worker's devices meet",
             choices=("cpu", "gpu")),
        Flag("clone_on_cpu", bool, False, "put the model on the CPU"),
        Flag("log_first_clone", bool, True, "console lines show the first device's log_info; false: the mean of all"),
        Flag("log_first_worker", bool, True, "only worker 0 prints console lines; false: all workers do"),
        Flag("checkpoint_include_patterns", str, "", "patterns, comma-separated: restore only these"),
        Flag("checkpoint_exclude_patterns", str, "", "patterns, comma-separated: do not restore these"),
        Flag("checkpoint_moving_averages", bool, False, "take moving averages of variables out of checkpoint_path"),
        Flag("deterministic", bool, False, "the same weights from run to run, also when a training was interrupted"),
        Flag("trainable_include_patterns", str, "", "comma-separated patterns: train only these variables"),
        Flag("trainable_exclude_patterns", str, "", "comma-separated patterns: do not train these variables"),
        Flag("loss_scale", float, 1.0, "multiply the loss before, divide the gradients after; 1 is off"),
        Flag("use_fp16", bool, False, "the whole model_fn computes in half precision; variables stay float32"),
        Flag("compute_dtype", str, "float32", "what model_fn computes in; float16 is the same as use_fp16",
             choices=("float32", "float16", "bfloat16")),
        Flag("gradient_clip", float, 0.0, "limit for gradient_clip_type; 0 is off"),
        Flag("gradient_clip_type", str, "global_norm", "what is clipped", choices=("norm", "global_norm", "value")),
        Flag("num_inter_threads", int, 0, "threads that run operations; 0: TensorFlow chooses", least=0),
        Flag("num_intra_threads", int, 0, "threads inside one operation; 0: TensorFlow chooses", least=0),
        Flag("session_timeout", int, 0, "seconds to wait for the other processes at start; 0: no limit", least=0),
        Flag("sync_before_server", bool, False, "workers wait for each other before their servers start"),
        Flag("chief_inc_global_step", bool, False, "only the chief's steps are global steps; false: all workers'"),
        Flag("server_protocol", str, "grpc", "protocol of the TensorFlow servers"),
        Flag("samples_per_epoch", int, None, "training samples of an epoch, instead of those counted", least=1),
        Flag("samples_per_epoch_eval", int, None, "samples of an evaluation, instead of those counted", least=1),
        Flag("save_model_secs", float, None, "seconds between checkpoints, where the script leaves it out"),
        Flag("save_summary_steps", int, None, "steps between summaries, where the script leaves it out"),
        Flag("log_every_n_steps", int, None, "steps between console lines, where the script leaves it out"),
        Flag("max_number_of_steps", int, None, "steps to train, where the script leaves it out"),
        Flag("batch_size", int, None, "rows a step, where the script leaves it out"),
        Flag("timeline_steps", str, "", "steps to trace, such as 100,200 or 300-305, into log_dir/timeline"),
        Flag("profile_steps", str, "", "steps to profile for TensorBoard, such as 100-110, into log_dir/plugins"),
        Flag("trace_all_workers", bool, False, "all workers trace the chosen steps; false: only the chief"),
        Flag("progress_secs", float, 60.0, "seconds between lines about progress; 0: none. A terminal has a live line"),
        Flag("log_format", str, "", "form of what a run prints: text, json (an object a line), quiet (only warnings)",
             choices=("", "text", "json", "quiet")),
        Flag("log_dir", str, None, "folder of checkpoints and summaries, where the script leaves it out"),
        Flag("checkpoint_path", str, None, "checkpoint to start from, where the script leaves it out"),
    )
}  # fmt: skip

# What a training platform passes to every script; read through tf.flags even where the script does not define it.
_PLATFORM = (
    Flag("data_url", str, None, "where the platform put the training data"),
    Flag("train_url", str, None, "where the platform wants the output"),
)


def _parse(flag: Flag, text: Any) -> Any:
    # Platforms pass an empty value for a field that was left blank.
    return flag.default if text == "" and flag.kind is not str else flag.parse(text)


class FlagStore:
    """The values of all flags in this process."""

    def __init__(self, table: Mapping[str, Flag] = FLAGS) -> None:
        self._table = table
        self._set: dict[str, Any] = {}
        self._argv_seen: tuple[str, ...] | None = None
        self._argv_values: dict[str, str] = {}
        self._environment_seen = ("", "")
        self._environment_values: dict[str, Any] = {}
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

    def _environment(self) -> dict[str, Any]:
        now = (os.environ.get("TF_CONFIG", ""), os.environ.get(ENVIRONMENT, ""))
        if now != self._environment_seen:
            config, words = now
            values = parse_tf_config(config) if config else {}
            self._environment_values = {**values, **parse_environment(words, self._table)}
            self._environment_seen = now
        return self._environment_values

    def get(self, name: str) -> Any:
        """Look a flag's value up.

        Raises:
            UsageError: the flag is unknown, or what its text or the environment says is no legal value.
        """
        flag = self._flag(name)
        if name in self._set:
            return self._set[name]
        if name in self._argv():
            return self._parse_argv_value(flag)
        return self.inherited(flag)

    def inherited(self, flag: Flag) -> Any:
        """Return what a flag is before anybody sets it: what the environment says, or the default.

        Raises:
            UsageError: the environment says what is no legal value.
        """
        inherited = self._environment()
        return _parse(flag, inherited[flag.name]) if flag.name in inherited else flag.default

    def _parse_argv_value(self, flag: Flag) -> Any:
        try:
            return _parse(flag, self._argv_values[flag.name])
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

    def get_help(self) -> str:
        """Describe every flag: name, type, default, meaning."""
        lines = ["Run-time flags (--name=value, --name value; booleans also --name, --noname):"]
        for flag in self._table.values():
            default = "unset" if flag.default is None else repr(flag.default)
            legal = f" one of: {', '.join(c for c in flag.choices if c)}." if flag.choices else ""
            lines.append(f"  --{flag.name} ({flag.kind.__name__}, default {default}): {flag.help}.{legal}")
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


def _placeholder_value(flag: Flag) -> Any:
    try:
        return store.inherited(flag)
    except UsageError:  # told by get_flag, if anybody asks
        return flag.default


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
                _placeholder_value(flag),
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
