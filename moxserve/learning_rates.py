"""The text of `piecewise_lr`: stages of a learning rate by epochs. Needs no TensorFlow.

    strategy  =  stage , {"," , stage}
    stage     =  epoch , ":" , rate , [("->" | "=>") , rate]

Each stage holds from the end of the one before it (the first from the start) to its own epoch. `0.1` is a constant,
`0.1->0.4` a straight line, `0.1=>0.4` an exponential. After the last stage its last rate stays. Blanks are allowed
around every part.

So `5:0.1->0.4,10:0.4=>0.8,15:0.8,20:0.08` is: epochs 0 to 5 a line from 0.1 to 0.4; 5 to 10 an exponential from 0.4 to
0.8; 10 to 15 the constant 0.8; from 15 on 0.08, past epoch 20, too. (The documents' own words for this text say "15 to
20: 0.8", which contradicts their other examples; a rate that no epoch would have cannot be meant.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from moxserve.errors import UsageError

__all__ = ["Stage", "parse_stages", "rate_at"]

_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*")
_ARROW = re.compile(r"\s*(->|=>)")


@dataclass(frozen=True)
class Stage:
    """A stretch of epochs.

    Attributes:
        start: epoch at which it begins.
        end: epoch at which it ends.
        first: rate at the start.
        last: rate at the end.
        exponential: whether the rate goes from one to the other by equal factors, not by equal differences.
    """

    start: float
    end: float
    first: float
    last: float
    exponential: bool = False

    def rate(self, epoch: float) -> float:
        """The rate at an epoch; outside of the stage that of its nearer end."""
        share = min(1.0, max(0.0, (epoch - self.start) / (self.end - self.start)))
        if self.exponential:
            return float(self.first * (self.last / self.first) ** share)
        return self.first + (self.last - self.first) * share


class _Reader:
    """Reads a strategy from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def error(self, message: str, position: int | None = None) -> UsageError:
        """Make an error that points at a character, counted from 1."""
        position = self.position if position is None else position
        return UsageError(
            f"learning-rate strategy, character {position + 1}: {message}\n  {self.text}\n  {' ' * position}^",
            hint="stages are epoch:rate, epoch:first->last (a line) or epoch:first=>last (an exponential), "
            "separated by commas: 5:0.1->0.4,10:0.4=>0.8,15:0.8,20:0.08",
        )

    def number(self, what: str) -> tuple[float, int]:
        """Read a number; also says where it began."""
        match = _NUMBER.match(self.text, self.position)
        if match is None:
            self.position += len(self.text[self.position :]) - len(self.text[self.position :].lstrip())
            found = repr(self.text[self.position]) if self.position < len(self.text) else "the end"
            raise self.error(f"expected {what}, found {found}")
        self.position = match.end()
        return float(match.group(1)), match.start(1)

    def arrow(self) -> str:
        """Read an arrow; empty if there is none."""
        match = _ARROW.match(self.text, self.position)
        if match is None:
            return ""
        self.position = match.end()
        return match.group(1)

    def skip(self, character: str) -> None:
        """Read one character."""
        if self.text[self.position : self.position + 1] != character:
            found = repr(self.text[self.position]) if self.position < len(self.text) else "the end"
            raise self.error(f"expected {character!r}, found {found}")
        self.position += 1


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Read a strategy.

    Args:
        text: as the module says.

    Returns:
        The stages, each beginning where the one before ends, the first at 0.

    Raises:
        UsageError: the text is no strategy; the message points at the place.
    """
    if not isinstance(text, str):
        raise UsageError(f"learning-rate strategy: expected text, got {type(text).__name__}")
    reader = _Reader(text)
    stages: list[Stage] = []
    while True:
        stages.append(_stage(reader, stages[-1].end if stages else 0.0))
        if reader.position == len(text):
            return tuple(stages)
        reader.skip(",")


def _stage(reader: _Reader, start: float) -> Stage:
    end, place = reader.number("an epoch")
    if not start < end < float("inf"):
        raise reader.error(f"the epoch {end:g} is not after {start:g}, where the stage begins", place)
    reader.skip(":")
    first, first_place = _rate(reader)
    arrow = reader.arrow()
    last, last_place = _rate(reader) if arrow else (first, first_place)
    if arrow == "=>":
        for value, where in ((first, first_place), (last, last_place)):
            if value == 0:
                raise reader.error("an exponential needs rates above 0", where)
    return Stage(start, end, first, last, arrow == "=>")


def _rate(reader: _Reader) -> tuple[float, int]:
    value, place = reader.number("a learning rate")
    if not 0 <= value < float("inf"):
        raise reader.error(f"the learning rate {value:g} is not a number from 0 on", place)
    return value, place


def rate_at(stages: tuple[Stage, ...], epoch: float) -> float:
    """The learning rate at an epoch."""
    return next((stage for stage in stages if epoch < stage.end), stages[-1]).rate(epoch)
