"""How far a form of a model is from its source, on real rows, and whether that is near enough. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from moxserve.export.facts import Figures, OutputFigures, Tolerance
from moxserve.export.tolerances import TOP1_LEAST, equal_share_for, lossy, most_lost_rows, tolerance_for
from moxserve.types import dtype_of

__all__ = ["figures", "judge", "with_singles"]

Arrays = Mapping[str, np.ndarray]

_TOP = 5
_MAX_DB = 400.0
_TINY = 1e-12
# Two classes whose scores are as near as float32 can tell apart after a network are one choice.
_TIE = 1e-5
_CHUNK = 1 << 22
_LARGEST = float(np.finfo(np.float64).max)


def figures(got: Arrays, expected: Arrays, labels: np.ndarray | None = None, scores: str = "") -> Figures:
    """Compare answers with those of the source model.

    Args:
        got: by alias, `[rows, ...]` each.
        expected: likewise; each output of it is compared.
        labels: `[rows]` whole numbers, the right class of each row; None when they are not known.
        scores: alias of the `[rows, classes]` output whose largest entry is the model's choice; empty without one.

    Returns:
        The figures. What cannot be compared (missing outputs, other shapes) is told in `problems`.
    """
    outputs, problems = _compare(got, expected)
    rows = max((a.shape[0] for a in expected.values() if a.ndim), default=0)
    agreement: dict[str, float | None] = {}
    known = {o.output for o in outputs}
    if scores in known and expected[scores].ndim >= 2 and expected[scores].shape[-1] > 1 and expected[scores].size:
        agreement = _agreement(_ordered(got[scores]), _ordered(expected[scores]), labels)
    return Figures(rows=rows, outputs=outputs, problems=problems, scores=scores if agreement else "", **agreement)


def with_singles(found: Figures, got: Arrays, expected: Arrays) -> Figures:
    """Add the answers to single rows, which runtimes compute in other ways than those to batches.

    Args:
        found: of the batches.
        got: answers to the first rows, one at a time, `[some, ...]` each.
        expected: the source's to all rows; its first rows are taken.
    """
    some = max((a.shape[0] for a in got.values() if a.ndim), default=0)
    singles, problems = _compare(got, {alias: array[:some] for alias, array in expected.items()})
    told = tuple(f"one row at a time, {problem}" for problem in problems)
    return found.model_copy(
        update={"single_rows": some, "singles": singles, "problems": (*found.problems, *told)}
    )  # fmt: skip


def judge(
    found: Figures, precision: str, *, max_drop: float | None = 0.01, tolerance: Tolerance | None = None
) -> tuple[str, ...]:
    """Tell why a form of a model must not stand in for its source.

    Rewrites in float32 and 16 bits are held to a distance (`tolerances`), those in float32 also to the same choices.
    int8 and dynamic have a wide distance for a sanity check, and a loss: of the labels' accuracy where they are known,
    else of the source's choices, in whole rows.

    Args:
        found: its figures.
        precision: as in the manifest; empty is float32.
        max_drop: share of the rows that int8 and dynamic may lose; None for any.
        tolerance: in the place of the precision's; only `rel_l2` and `agreement` count.

    Returns:
        One reason a limit, empty when it is near enough.
    """
    limits = tolerance or tolerance_for(precision)
    called = precision or "float32"
    reasons = list(found.problems)
    for outputs, where in ((found.outputs, ""), (found.singles, "one row at a time, ")):
        for one in outputs:
            reasons += [f"{where}output {one.output!r}: {why}" for why in _too_far(one, limits, called)]
    least = TOP1_LEAST.get(called, 0.0) if tolerance is None else tolerance.agreement or 0.0
    if found.top1_agreement is not None and found.top1_agreement < least:
        reasons.append(f"{found.top1_agreement:.2%} of the rows have the source's first choice, not {least:.0%}")
    if max_drop is not None and lossy(called):
        reasons += _lost(found, max_drop)
    return tuple(reasons)


def _too_far(one: OutputFigures, limits: Tolerance, precision: str) -> Iterator[str]:
    if one.misplaced:
        yield f"{one.misplaced} values are not finite where the source's are, or the other way round"
    if one.equal_share is not None:
        needed = equal_share_for(precision) if limits.agreement is None else limits.agreement
        if one.equal_share < needed:
            yield f"{one.equal_share:.3g} of its values are equal, not {needed:g}"
    elif limits.rel_l2 is not None and one.rel_l2 > limits.rel_l2 and one.max_abs_error > _TINY:
        yield f"relative error {one.rel_l2:.3g} (L2), at most {limits.rel_l2:g} is allowed for {precision}"


def _lost(found: Figures, max_drop: float) -> list[str]:
    allowed = most_lost_rows(max_drop, found.rows)
    drop = found.accuracy_drop
    if drop is not None:
        if round(drop * found.rows) <= allowed:
            return []
        return [
            f"accuracy {found.accuracy:.2%} instead of {found.source_accuracy:.2%} on {found.rows} rows: "
            f"it loses {drop:.2%}, at most {max_drop:.2%} is allowed"
        ]
    if found.top1_agreement is None or round((1 - found.top1_agreement) * found.rows) <= allowed:
        return []
    return [
        f"the first choice is another in {1 - found.top1_agreement:.2%} of {found.rows} rows, "
        f"at most {max_drop:.2%} is allowed (no labels are known)"
    ]


def _compare(got: Arrays, expected: Arrays) -> tuple[tuple[OutputFigures, ...], tuple[str, ...]]:
    outputs, problems = [], []
    for alias, want in expected.items():
        have = got.get(alias)
        if have is None:
            problems.append(f"output {alias!r} is missing")
        elif have.shape != want.shape or dtype_of(have) != dtype_of(want):
            problems.append(
                f"output {alias!r} is {dtype_of(have).name}{list(have.shape)} and should be "
                f"{dtype_of(want).name}{list(want.shape)}"
            )
        elif want.dtype.kind in "fVc":
            outputs.append(_real(alias, have, want))
        else:
            share = float(np.mean(have == want)) if want.size else 1.0
            outputs.append(OutputFigures(output=alias, dtype=dtype_of(want).name, equal_share=share))
    return tuple(outputs), tuple(problems)


class _Sums:
    """Adds up what the figures of real numbers are made of, chunk by chunk: in float64 all at once may not fit."""

    def __init__(self) -> None:
        self.gap = self.size = 0.0
        self.gap_squares = self.size_squares = 0.0
        self.misplaced = 0

    def add(self, have: np.ndarray, want: np.ndarray) -> None:
        kind = np.complex128 if want.dtype.kind == "c" else np.float64
        with np.errstate(over="ignore", invalid="ignore"):
            a, b = have.astype(kind), want.astype(kind)
            finite = np.isfinite(a) & np.isfinite(b)
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            self.misplaced += int(np.count_nonzero(~finite & ~same))
            gap, size = np.abs(a - b)[finite], np.abs(b)[finite]
            self.gap = max(self.gap, _capped(gap.max(initial=0.0)))
            self.size = max(self.size, _capped(size.max(initial=0.0)))
            self.gap_squares += float(np.square(gap).sum())
            self.size_squares += float(np.square(size).sum())


def _real(alias: str, have: np.ndarray, want: np.ndarray) -> OutputFigures:
    sums = _Sums()
    for part in _parts(want):
        sums.add(have[part], want[part])
    gap, size = (_capped(np.sqrt(s)) for s in (sums.gap_squares, sums.size_squares))
    with np.errstate(over="ignore"):
        return OutputFigures(
            output=alias,
            dtype=dtype_of(want).name,
            max_abs_error=sums.gap,
            max_rel_error=_capped(np.float64(sums.gap) / max(sums.size, _TINY)),
            rel_l2=_capped(np.float64(gap) / max(size, _TINY)),
            sqnr_db=_decibel(size, gap),
            misplaced=sums.misplaced,
        )


def _parts(array: np.ndarray) -> Iterator[slice | tuple[()]]:
    """Return indices that cut an array into pieces of a bounded size, along its first dimension."""
    if not array.ndim:
        yield ()
        return
    step = max(1, _CHUNK * max(1, array.shape[0]) // max(1, array.size))
    for start in range(0, array.shape[0], step):
        yield slice(start, start + step)


def _capped(value: float | np.floating) -> float:
    """Return a finite number: the largest there is for what overflowed."""
    return min(float(value), _LARGEST) if not np.isnan(value) else _LARGEST


def _decibel(size: float, gap: float) -> float:
    if gap == 0:
        return _MAX_DB
    if size == 0:
        return -_MAX_DB
    return float(np.clip(20 * (np.log10(size) - np.log10(gap)), -_MAX_DB, _MAX_DB))


def _ordered(scores: np.ndarray) -> np.ndarray:
    """Return scores that can be put in order, `[rows, classes] float64`: no number is the least of all."""
    flat = np.abs(scores) if scores.dtype.kind == "c" else scores
    wide = flat.reshape(-1, flat.shape[-1]).astype(np.float64)
    return np.where(np.isnan(wide), -np.inf, wide)


def _agreement(got: np.ndarray, expected: np.ndarray, labels: np.ndarray | None) -> dict[str, float | None]:
    found: dict[str, float | None] = {"top1_agreement": _shared(got, expected, 1)}
    if expected.shape[1] > _TOP:
        found["top5_agreement"] = _shared(got, expected, _TOP)
    if labels is not None and labels.size == len(expected):
        right = labels.reshape(-1)
        found["accuracy"] = float(np.mean(got.argmax(1) == right))
        found["source_accuracy"] = float(np.mean(expected.argmax(1) == right))
    return found


def _shared(got: np.ndarray, expected: np.ndarray, count: int) -> float:
    """Return which share of the first choices are among the source's, those as good as its last one included."""
    choices: Sequence[int] | np.ndarray = np.argsort(-got, axis=1, kind="stable")[:, :count]
    last = -np.sort(-expected, axis=1)[:, count - 1 : count]
    finite = np.where(np.isfinite(expected), np.abs(expected), 0.0)
    slack = _TIE * finite.max(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        among = np.take_along_axis(expected, np.asarray(choices), 1) >= last - slack
    # A row without any number to choose by chooses nothing, which agrees with nothing alone.
    chooses, should = np.isfinite(got).any(1), np.isfinite(expected).any(1)
    return float(np.mean((among & (chooses & should)[:, None]) | (~chooses & ~should)[:, None]))
