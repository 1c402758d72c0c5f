"""What hooks know, kept beside the checkpoints: a run that goes on decides as one that was never interrupted.

`hooks.json` in `log_dir` has an entry for each of the newest checkpoints: its global step, and what each hook wants to
know again. The entry is written just before its checkpoint. So there is one for every complete checkpoint, and a crash
between the two leaves one too many, which nobody asks for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from moxserve.errors import CheckpointError, ModelSpecError
from moxserve.file import atomic_write
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.hooks.base import AggregativeSessionRunHook

__all__ = ["HOOK_STATES", "HookStates"]

HOOK_STATES = "hooks.json"
_VERSION = 1
_STATES = "return a dict of numbers, strings, lists and dicts, or None"
_KEPT = 16  # entries; more than there are checkpoints in a log_dir


class HookStates:
    """The states of one run's hooks.

    Args:
        folder: the `log_dir`; None keeps nothing.
        hooks: of the run, in order. They are known by their class and by how many of it came before.
    """

    def __init__(self, folder: str | None, hooks: Sequence[Any]) -> None:
        self._path = os.path.join(folder or "", HOOK_STATES)
        self._keeps = folder is not None
        self._hooks: dict[str, AggregativeSessionRunHook] = {}
        self._entries: list[dict[str, Any]] = []
        for hook in hooks:
            if isinstance(hook, AggregativeSessionRunHook):
                name = type(hook).__name__
                count = sum(other.partition("#")[0] == name for other in self._hooks)
                self._hooks[f"{name}#{count}" if count else name] = hook

    def restore(self, step: int) -> None:
        """Give each hook what it knew when a checkpoint was written; nothing where that was not kept.

        Args:
            step: global step of the checkpoint.

        Raises:
            CheckpointError: the file, or what it says of a hook, cannot be read.
        """
        if not self._keeps:
            return
        self._entries = [entry for entry in self._read() if entry["step"] <= step]
        states: Mapping[str, Any] = self._entries[-1]["hooks"] if self._entries else {}
        if not self._entries or self._entries[-1]["step"] != step:
            return
        for name, hook in self._hooks.items():
            if name in states:
                try:
                    hook.restore_state(states[name])
                except (LookupError, TypeError, ValueError) as error:
                    raise self._unreadable(f"what it says of {name} does not fit: {error!r}") from error

    def save(self, step: int) -> None:
        """Note what the hooks know, for the checkpoint that is about to be written at this global step.

        Raises:
            CheckpointError: a hook's state cannot be written.
        """
        states = {name: state for name, hook in self._hooks.items() if (state := _state(name, hook)) is not None}
        if not states and not self._entries:
            return
        kept = [entry for entry in self._entries if entry["step"] < step]
        self._entries = [*kept, {"step": step, "hooks": states}][-_KEPT:]
        try:
            text = json.dumps({"version": _VERSION, "checkpoints": self._entries}, indent=1)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"save_state() of {' or '.join(states)} gave what JSON cannot hold: {error}", hint=_STATES
            ) from error
        try:
            atomic_write(self._path, text + "\n")
        except OSError as error:
            raise CheckpointError(f"cannot write {self._path!r}: {error}") from error

    def tell_ended(self) -> bool:
        """Whether a hook had ended the training already, by its restored state; warns and names it."""
        for hook in self._hooks.values():
            if hook.has_ended_training():
                tf1.logging.warning(
                    "Nothing to train: %s had ended the training when the checkpoint was written; to go on, give it "
                    "more patience, or remove %s",
                    type(hook).__name__, self._path,
                )  # fmt: skip
                return True
        return False

    def _read(self) -> list[dict[str, Any]]:
        try:
            with open(self._path, encoding="utf-8") as file:
                content = json.load(file)
            if content["version"] > _VERSION:
                raise self._unreadable(f"it is of version {content['version']}, this is version {_VERSION}")
            entries = [{"step": int(entry["step"]), "hooks": dict(entry["hooks"])} for entry in content["checkpoints"]]
        except FileNotFoundError:
            return []
        except (OSError, LookupError, TypeError, ValueError) as error:
            raise self._unreadable(str(error)) from error
        return sorted(entries, key=lambda entry: int(entry["step"]))

    def _unreadable(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"cannot read {self._path!r}, the state of the hooks: {why}",
            hint="remove the file: the hooks then begin anew, as in a first run",
        )


def _state(name: str, hook: AggregativeSessionRunHook) -> Mapping[str, Any] | None:
    state = hook.save_state()
    if state is not None and not isinstance(state, Mapping):
        raise ModelSpecError(f"save_state() of {name} returned a {type(state).__name__}", hint=_STATES)
    return state
