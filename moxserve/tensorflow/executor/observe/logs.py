"""The form of what a run prints: text, JSON lines, or only warnings and errors.

Everything that a run says goes through TensorFlow's logger, as it always did; what is more than text is an `Event`. For
JSON the logger's handlers give way to one that writes the events' facts; other lines become events named `log`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from typing import Any

from moxserve import talk
from moxserve.talk import Event
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.flags import FlagStore

__all__ = ["logged", "means_event", "process_name", "result_facts"]


@contextmanager
def logged(form: str | None, process: str = "") -> Iterator[Callable[[Any], Any]]:
    """Print in a form within a block; in JSON an error that ends the block is an event, too.

    Args:
        form: `text`, `json`, `quiet`; None or empty for what was chosen for the process.
        process: which one of a job this is, for JSON; empty where it is the only one.

    Yields:
        What tells the run's result in JSON, and returns it.
    """
    common = {"process": process} if process else {}
    if not form or form == talk.form():  # whoever chose it tells of errors
        with talk.talking(talk.form(), **common), _logging_as(talk.form()):
            yield _told
        return
    with talk.talking(form, **common), _logging_as(form):
        try:
            yield _told
        except Exception as error:
            talk.tell(talk.error_facts(error))
            raise


def _logging_as(form: str) -> AbstractContextManager[None]:
    logger = tf1.get_logger()
    return {"quiet": _quiet, "json": _as_json}.get(form, nullcontext)(logger)


def _told(result: Any) -> Any:
    talk.tell(result_facts(result))
    return result


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    before = logger.level
    logger.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _as_json(logger: logging.Logger) -> Iterator[None]:
    if any(isinstance(handler, _JsonLines) for handler in logger.handlers):
        yield  # a run within a run
        return
    handlers, propagate = list(logger.handlers), logger.propagate
    logger.handlers, logger.propagate = [_JsonLines()], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate


class _JsonLines(logging.Handler):
    """Writes each record as an event."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the event's facts, or the line as a `log` event."""
        event = record.args[0] if isinstance(record.args, tuple) and len(record.args) == 1 else None
        if isinstance(event, Event) and record.msg == "%s":
            talk.tell(event.facts)
        else:
            talk.tell({"event": "log", "level": record.levelname.lower(), "message": record.getMessage()})


def process_name(store: FlagStore) -> str:
    """Which process of a job this is: `worker 1`; empty where the flags name no other."""
    cluster = "," in store.get("worker_hosts") or store.get("ps_hosts")
    return f"{store.get('job_name')} {store.get('task_index')}" if cluster else ""


def means_event(steps: int, global_step: int, values: Mapping[str, float]) -> Event:
    """Write the line of an evaluation's means."""
    text = "\t".join(f"{name}: {value:.3f}" for name, value in values.items())
    facts = {"event": "evaluation", "steps": steps, "global_step": global_step, "values": dict(values)}
    return Event(f"evaluated {steps} steps (global step: {global_step})\t{text}", facts)


def result_facts(result: Any) -> dict[str, Any]:
    """Describe a RunResult as an event."""
    return {"event": "result", **{field.name: _plain(getattr(result, field.name)) for field in fields(result)}}


def _plain(value: Any) -> Any:
    """Make JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value
