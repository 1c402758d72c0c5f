"""Conditions on variants, as a user writes them: `int8.top1_agreement>=0.99`.

    requirement = variant "." metric operator number
    variant     = a name (`onnx_int8`), a shell pattern (`onnx*`), a precision (`int8`: every variant in it) or a format
                  (`tflite`); what is a variant's name means that variant only, and only its name means `saved_model`
    operator    = ">=" | "<=" | ">" | "<" | "=="

Spaces may stand around the operator. A condition on what is not known (accuracy without labels) does not hold.
"""

from __future__ import annotations

import fnmatch
import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from moxserve.errors import UsageError, did_you_mean
from moxserve.export.report.model import RequirementResult, VariantReport
from moxserve.export.targets import FORMATS, precision_of

__all__ = [
    "METRICS",
    "Conditions",
    "Requirement",
    "Subject",
    "bind_requirements",
    "check_requirements",
    "metrics_of",
    "parse_requirement",
    "read_conditions",
    "speedup",
]

OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_LABELLED = frozenset(("accuracy", "accuracy_drop"))
_MEASURED = frozenset((
    "load_s", "latency_ms", "latency_b32_ms", "throughput", "throughput_b32", "peak_memory_mb", "speedup",
))  # fmt: skip
METRICS = (
    "top1_agreement", "top5_agreement", "accuracy", "accuracy_drop", "max_abs_error", "max_rel_error", "rel_l2",
    "sqnr_db", "size_mb", "load_s", "latency_ms", "latency_b32_ms", "throughput", "throughput_b32", "peak_memory_mb",
    "speedup", "size_ratio",
)  # fmt: skip
_FORM = "expected VARIANT.METRIC OPERATOR NUMBER, such as int8.top1_agreement>=0.99"
_OPERATOR = re.compile(r">=|<=|==|>|<")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


class Subject(Protocol):
    """What a condition can be about: a target, or a variant."""

    @property
    def name(self) -> str:
        """Such as `onnx_int8`."""
        ...

    @property
    def precision(self) -> str:
        """Such as `int8`."""
        ...


@dataclass(frozen=True)
class _Named:
    name: str
    precision: str


# Each version has it, beside what is made of it.
_SAVED_MODEL = _Named("saved_model", "float32")


@dataclass(frozen=True)
class Requirement:
    """One condition.

    Attributes:
        text: as the user wrote it.
        variant: name, shell pattern, precision or format.
        metric: one of `METRICS`.
        operator: key of `OPERATORS`.
        limit: the number.
    """

    text: str
    variant: str
    metric: str
    operator: str
    limit: float

    @property
    def needs_labels(self) -> bool:
        """Whether it can only be told with labels."""
        return self.metric in _LABELLED

    @property
    def needs_measure(self) -> bool:
        """Whether it can only be told when variants are measured."""
        return self.metric in _MEASURED

    def about(self, subjects: Iterable[Subject]) -> list[str]:
        """Return the names of those that it is about, in their order."""
        known = list(subjects)
        if any(s.name == self.variant for s in known):
            return [self.variant]
        return [s.name for s in known if s.name != _SAVED_MODEL.name and self._matches(s)]

    def _matches(self, subject: Subject) -> bool:
        precision = precision_of(self.variant)
        if precision is not None:
            return (subject.precision or "float32") == precision
        # By the name: a frozen graph is a SavedModel to those who load it, and `frozen` to those who ask for it.
        return subject.name.partition("_")[0] == self.variant or fnmatch.fnmatchcase(subject.name, self.variant)


def parse_requirement(text: str) -> Requirement:
    """Read a condition.

    Raises:
        UsageError: it is none; says where, and what was expected.
    """
    found = _OPERATOR.search(text)
    if found is None:
        at = re.search(r"[=~!]", text)
        raise _wrong(text, at.start() if at else len(text), f"no operator ({', '.join(OPERATORS)})")
    left, right = text[: found.start()], text[found.end() :]
    variant, dot, metric = (part.strip() for part in left.rpartition("."))
    if not dot or not variant:
        raise _wrong(text, 0, "no variant before the metric")
    if metric not in METRICS:
        at_metric = len(left) - len(left.rpartition(".")[2].lstrip())
        raise _wrong(
            text, at_metric, f"{metric!r} is not a metric; {did_you_mean(metric, METRICS, limit=len(METRICS))}"
        )
    if not _NUMBER.fullmatch(right.strip()):
        at_number = len(text) - len(right.lstrip())
        raise _wrong(text, at_number, f"{right.strip()!r} is not a number")
    limit = float(right)
    if not math.isfinite(limit):
        raise _wrong(text, len(text) - len(right.lstrip()), f"{right.strip()!r} is beyond what a number can hold")
    return Requirement(text, variant, metric, found[0], limit)


def _wrong(text: str, offset: int, why: str) -> UsageError:
    return UsageError(f"condition {text!r}, column {offset + 1}: {why}", hint=_FORM)


def bind_requirements(
    texts: Iterable[str], subjects: Collection[Subject], *, measure: bool = True, labels: bool = True
) -> tuple[Requirement, ...]:
    """Read conditions and see that each can be told, before any work starts.

    Args:
        texts: as the user wrote them.
        subjects: what will be made; the SavedModel is added.
        measure: whether variants will be measured.
        labels: whether the right classes of the rows are known.

    Raises:
        UsageError: one cannot be read, is about no variant, or about what will not be known.
    """
    found = tuple(parse_requirement(text) for text in texts)
    known: list[Subject] = [_SAVED_MODEL, *subjects]
    for requirement in found:
        if not requirement.about(known):
            raise _about_nothing(requirement, known)
        if requirement.needs_measure and not measure:
            raise UsageError(f"condition {requirement.text!r}: {requirement.metric} needs variants to be measured",
                             hint="export without --no-measure")  # fmt: skip
        if requirement.needs_labels and not labels:
            raise UsageError(f"condition {requirement.text!r}: the right classes of the rows are not known",
                             hint="top1_agreement compares with the source model instead")  # fmt: skip
    return found


@dataclass(frozen=True)
class Conditions:
    """What the user asks of variants, read.

    Attributes:
        demanded: names of variants that must be published.
        required: conditions without which nothing is published.
        limits: conditions without which a variant is dropped.
    """

    demanded: tuple[str, ...] = ()
    required: tuple[Requirement, ...] = ()
    limits: tuple[Requirement, ...] = ()


def read_conditions(
    require: Iterable[str], limits: Iterable[str], subjects: Collection[Subject], *, measure: bool = True
) -> Conditions:
    """Read the conditions of an export before any work is done.

    Args:
        require: conditions, and names of variants alone.
        limits: conditions.
        subjects: what will be made.
        measure: whether variants will be measured.

    Raises:
        UsageError: one cannot be read, or is about no variant that is made.
    """
    texts = list(require)
    names = [text for text in texts if not _OPERATOR.search(text)]
    # A name alone is a condition that every variant which is there meets.
    by_name = [Requirement(name, name.strip(), "size_mb", ">=", 0.0) for name in names]
    for requirement in by_name:
        if not requirement.about([_SAVED_MODEL, *subjects]):
            raise _about_nothing(requirement, [_SAVED_MODEL, *subjects])
    required = bind_requirements([t for t in texts if _OPERATOR.search(t)], subjects, measure=measure)
    demanded = [name for requirement in (*by_name, *required) for name in requirement.about(subjects)]
    dropping = bind_requirements(limits, subjects, measure=measure)
    for requirement in dropping:
        if requirement.about([_SAVED_MODEL]):
            raise UsageError(
                f"limit {requirement.text!r}: the SavedModel cannot be dropped", hint="--require is for it, too"
            )
    return Conditions(tuple(dict.fromkeys(demanded)), required, dropping)


def _about_nothing(requirement: Requirement, known: Sequence[Subject]) -> UsageError:
    names = [s.name for s in known]
    if precision_of(requirement.variant) or requirement.variant in FORMATS:
        why = f"no variant in {requirement.variant} is made; known: {', '.join(names)}"
    else:
        why = f"no variant is called so; {did_you_mean(requirement.variant, names)}"
    return UsageError(f"condition {requirement.text!r}, column 1: {why}")


def metrics_of(variant: VariantReport, source: VariantReport | None) -> dict[str, float]:
    """Return what is known of a variant, by metric.

    Args:
        variant: figures and measures.
        source: the SavedModel's, for `speedup` and `size_ratio`.
    """
    figures, measured = variant.figures, variant.measured
    found: dict[str, float | None] = {}
    if figures is not None:
        names = ("top1_agreement", "top5_agreement", "accuracy", "accuracy_drop", "max_abs_error", "max_rel_error",
                 "rel_l2", "sqnr_db")  # fmt: skip
        found.update({name: getattr(figures, name) for name in names})
    if variant.size_bytes:
        found["size_mb"] = variant.size_bytes / 1e6
        if source is not None and source.size_bytes:
            found["size_ratio"] = variant.size_bytes / source.size_bytes
    if measured is not None:
        found.update(load_s=measured.load_s, peak_memory_mb=measured.peak_memory_mb)
        for batch, suffix in ((1, ""), (32, "_b32")):
            timing = measured.at(batch)
            if timing is not None:
                found[f"latency{suffix}_ms"] = timing.p50_ms
                found[f"throughput{suffix}"] = timing.rows_per_s
        found["speedup"] = speedup(variant, source, 1)
    return {name: value for name, value in found.items() if value is not None}


def speedup(variant: VariantReport, source: VariantReport | None, batch: int) -> float | None:
    """Return how many times as fast as the SavedModel a variant answers, None when one of them was not measured.

    By the fastest calls: what else the machine does only makes calls slower, and seldom both alike.
    """
    if variant.measured is None or source is None or source.measured is None:
        return None
    own, other = variant.measured.at(batch), source.measured.at(batch)
    return other.min_ms / own.min_ms if own is not None and other is not None and own.min_ms else None


def check_requirements(
    requirements: Sequence[Requirement], variants: Sequence[VariantReport]
) -> tuple[RequirementResult, ...]:
    """Hold conditions against variants.

    Args:
        requirements: from `bind_requirements`.
        variants: all of them, the SavedModel included; what failed has no metrics.

    Returns:
        One result for each condition and variant that it is about.
    """
    source = next((v for v in variants if v.verdict == "source"), None)
    by_name = {v.name: v for v in variants}
    return tuple(
        _check(requirement, by_name[name], source)
        for requirement in requirements
        for name in requirement.about(variants)
    )


def _check(requirement: Requirement, variant: VariantReport, source: VariantReport | None) -> RequirementResult:
    value = metrics_of(variant, source).get(requirement.metric)
    if value is None:
        passed, why = False, f"{requirement.metric} of {variant.name} is not known"
    else:
        passed = OPERATORS[requirement.operator](value, requirement.limit)
        needed = f"{requirement.metric} is {value:.6g}, required is {requirement.operator} {requirement.limit:g}"
        why = "" if passed else needed
    return RequirementResult(
        requirement=requirement.text,
        variant=variant.name,
        metric=requirement.metric,
        value=value,
        passed=passed,
        why=why,
    )
