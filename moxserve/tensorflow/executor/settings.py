"""The arguments of `run`, completed from the flags and checked, before anything is built."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moxserve.errors import ModelSpecError, UsageError
from moxserve.file.filesystem import is_remote
from moxserve.tensorflow.executor.calls import check_callable
from moxserve.tensorflow.executor.checkpoint import latest_checkpoint, local_path
from moxserve.tensorflow.executor.flags import FlagStore
from moxserve.tensorflow.executor.mirror import Mirror
from moxserve.tensorflow.executor.participants import Every
from moxserve.tensorflow.executor.spec import ExportKeys, ModeKeys
from moxserve.tensorflow.executor.warm_start import WarmStart

__all__ = ["Functions", "RunArguments", "Settings"]

_DEFAULT_LOG_STEPS = 10
_DEFAULT_SUMMARY_STEPS = 100
_DEFAULT_SAVE_SECS = 600.0


@dataclass(frozen=True)
class Functions:
    """The functions that a user gives to `run`."""

    input_fn: Callable[..., Any]
    model_fn: Callable[..., Any]
    optimizer_fn: Any = None
    output_fn: Callable[..., Any] | None = None
    fetch_strategy_fn: Callable[[int], bool] | None = None

    def check(self, settings: Settings) -> None:
        """Check that the functions which the mode needs are there.

        Raises:
            ModelSpecError: one is missing or no function.
            UsageError: `output_fn` would never be called.
        """
        check_callable(self.input_fn, "input_fn", "def input_fn(mode, **kwargs): ... return image, label")
        check_callable(self.model_fn, "model_fn", "def model_fn(inputs, mode, **kwargs): ... return mox.ModelSpec(...)")
        if settings.mode == ModeKeys.TRAIN and self.optimizer_fn is None:
            raise ModelSpecError(
                "run() needs optimizer_fn in TRAIN", hint="optimizer_fn=mox.get_optimizer_fn('sgd', learning_rate=0.01)"
            )
        if settings.mode == ModeKeys.PREDICT or self.output_fn is not None:
            check_callable(
                self.output_fn, "output_fn", "def output_fn(outputs, **kwargs): ... # one dict of arrays per step"
            )
        if self.output_fn is not None and not settings.output_every and settings.mode != ModeKeys.PREDICT:
            raise UsageError(
                f"run(output_fn=...) in {settings.mode} needs output_every_n_steps, which is 0",
                hint="output_every_n_steps=10 calls output_fn with the outputs of 10 steps at a time",
            )
        if self.fetch_strategy_fn is not None:
            check_callable(self.fetch_strategy_fn, "fetch_strategy_fn", "fetch_strategy_fn=lambda step: step % 10 == 0")


@dataclass(frozen=True)
class RunArguments:
    """The arguments of `run` as they were given, functions left out."""

    run_mode: Any
    inter_mode: Any
    batch_size: Any
    auto_batch: Any
    log_dir: Any
    max_number_of_steps: Any
    checkpoint_path: Any
    log_every_n_steps: Any
    output_every_n_steps: Any
    save_summary_steps: Any
    save_model_secs: Any
    export_model: Any
    save_model_steps: Any
    warm_start: Any = None


@dataclass(frozen=True)
class Settings:
    """What a run does, with every default resolved.

    Attributes:
        mode: TRAIN, EVAL or PREDICT.
        inter_mode: mode of the branch that hooks run in the middle of training, None for none.
        batch_size: rows of a step.
        auto_batch: whether the executor makes the batches.
        log_dir: folder of checkpoints and summaries, None for none.
        checkpoint_path: where to start from when `log_dir` has no checkpoint.
        max_steps: 0 for no limit.
        log_every: console lines; None for none.
        output_every: steps per call of `output_fn`; 0 for one call at the end.
        summary_every: summaries; None for none.
        save_every: checkpoints; None for the end only.
        export: kinds of artifact; empty for none.
        warm_start: what is taken from another model when `log_dir` has no checkpoint, None for nothing.
        mirror: of `log_dir`, where that stands for a directory of a store; see `remote`.
        was_remote: whether `log_dir` was given as a URL.
        fetched: the checkpoint at `checkpoint_path` here and in the store, where that was a URL.
    """

    mode: str
    inter_mode: str | None
    batch_size: int
    auto_batch: bool
    log_dir: str | None
    checkpoint_path: str | None
    max_steps: int
    log_every: Every | None
    output_every: int
    summary_every: Every | None
    save_every: Every | None
    export: tuple[str, ...]
    warm_start: WarmStart | None = None
    mirror: Mirror | None = None
    was_remote: bool = False
    fetched: tuple[str, str] | None = None

    @property
    def base_dir(self) -> str | None:
        """The base folder of exported versions: `log_dir` as it was given."""
        return self.shown(self.log_dir)

    def shown(self, path: str | None) -> str | None:
        """Return a path in `log_dir`, or the checkpoint it started from, as it is known outside of the run."""
        if self.fetched is not None and path == self.fetched[0]:
            return self.fetched[1]
        return self.mirror.url_of(path) if path is not None and self.mirror is not None and self.was_remote else path

    @property
    def resume(self) -> str | None:
        """The checkpoint in `log_dir`, if any. For a process that restores none it may be a name alone."""
        found = latest_checkpoint(self.log_dir)
        return self.mirror.named if found is None and self.mirror is not None else found

    @property
    def fate(self) -> str:
        """What became of the last checkpoint, for a message."""
        stale = self.mirror is not None and self.mirror.stale
        return "could not be stored: the store has an earlier one, if any" if stale else "is written"

    @classmethod
    def resolve(cls, given: RunArguments, store: FlagStore) -> Settings:
        """Complete the arguments from the flags, and check them.

        Raises:
            UsageError: one is missing or has no legal value.
        """
        mode = ModeKeys.check_runnable(given.run_mode)
        if given.inter_mode is not None:
            ModeKeys.check_runnable(given.inter_mode, "inter_mode")
        choose = _Chooser(store)
        export = ExportKeys.resolve(given.export_model)
        log_dir = _path(choose("log_dir", given.log_dir, None), "log_dir")
        if export and log_dir is None:
            raise UsageError(
                f"export_model={given.export_model!r} needs log_dir: the model is exported to LOG_DIR/<version>",
                hint="give log_dir to run(), or --log_dir on the command line",
            )
        checkpoint_path = _path(choose("checkpoint_path", given.checkpoint_path, None), "checkpoint_path")
        return cls(
            mode=mode,
            inter_mode=given.inter_mode,
            batch_size=_batch_size(choose("batch_size", given.batch_size, None)),
            auto_batch=bool(given.auto_batch),
            log_dir=log_dir,
            checkpoint_path=checkpoint_path,
            max_steps=_count(
                choose("max_number_of_steps", given.max_number_of_steps or None, 0), "max_number_of_steps"
            ),
            log_every=_steps(
                choose("log_every_n_steps", given.log_every_n_steps, _DEFAULT_LOG_STEPS), "log_every_n_steps"
            ),
            output_every=_count(given.output_every_n_steps or 0, "output_every_n_steps"),
            summary_every=_steps(
                choose("save_summary_steps", given.save_summary_steps, _DEFAULT_SUMMARY_STEPS), "save_summary_steps"
            ),
            save_every=_save_schedule(choose, given),
            export=export,
            warm_start=_warm_start(given.warm_start, mode, checkpoint_path),
        )


class _Chooser:
    """Picks what the script gave, else the flag, else the default."""

    def __init__(self, store: FlagStore) -> None:
        self._store = store

    def __call__(self, flag: str, given: Any, default: Any) -> Any:
        if given is not None:
            return given
        value = self._store.get(flag)
        return default if value is None else value


def _save_schedule(choose: _Chooser, given: RunArguments) -> Every | None:
    """Seconds win over steps; a flag does not win over steps that the script gives."""
    secs, steps = given.save_model_secs, given.save_model_steps
    if secs is None and steps is None:
        secs = choose("save_model_secs", None, _DEFAULT_SAVE_SECS)
    if secs is not None:
        if isinstance(secs, bool) or not isinstance(secs, (int, float)) or secs < 0:
            raise UsageError(
                f"save_model_secs={secs!r}: expected a number of seconds, 0 for a checkpoint at the end only"
            )
        return Every(secs=float(secs)) if secs else None
    return _steps(steps, "save_model_steps")


def _batch_size(value: Any) -> int:
    if value is None:
        raise UsageError(
            "run() needs batch_size, also with auto_batch=False (it counts the throughput)",
            hint="run(..., batch_size=32)",
        )
    count = _count(value, "batch_size")
    if count == 0:
        raise UsageError("batch_size=0: expected at least 1")
    return count


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 0:
        raise UsageError(f"{name}={value!r}: expected a whole number, 0 or more")
    return int(value.__index__())


def _steps(value: Any, name: str) -> Every | None:
    count = _count(value, name)
    return Every(steps=count) if count else None


def _warm_start(value: Any, mode: str, checkpoint_path: str | None) -> WarmStart | None:
    if value is None:
        return None
    if mode != ModeKeys.TRAIN:
        raise UsageError(f"run(warm_start=...) is for TRAIN, not for {mode}", hint="give checkpoint_path")
    if checkpoint_path is not None:
        raise UsageError(
            f"run(warm_start=..., checkpoint_path={checkpoint_path!r}): a training starts from one of them",
            hint="checkpoint_path takes all that fits, with the step; warm_start the model's variables, from step 0",
        )
    return value if isinstance(value, WarmStart) else WarmStart(value)


def _path(value: Any, name: str) -> str | None:
    """Check a path; an empty one means none, because platforms pass empty flags for what was left out."""
    if value is None or value == "":
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise UsageError(f"{name}={value!r}: expected a path")
    text = os.fspath(value)
    if is_remote(text) and not text.partition("://")[2].partition("/")[0]:
        raise UsageError(f"{name}={text!r}: expected a bucket and a folder, such as s3://bucket/run")
    return text if is_remote(text) else local_path(text, name)
