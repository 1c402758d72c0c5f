"""What int8 costs, which operations are to stay in floating point, and the search for them. NumPy only, any runtime.

The loss is the share of rows that `Calibration.max_drop` speaks of. By what is known of the model it is, in this order:

1. `accuracy`: rows have labels and the model has scores: the share of right choices that was lost. Negative where the
   quantized model happens to be right more often.
2. `agreement`: the model has scores: the share of rows whose largest score is at another place than the source's.
3. `relative error`: the share of rows of which some floating-point output is further than a tenth from the source's,
   `||got - expected|| > 0.1 ||expected||`, or some other output is not equal.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from moxserve.errors import ExportError, UsageError, did_you_mean
from moxserve.export.tolerances import most_lost_rows
from moxserve.export.variants.work import Rows

__all__ = ["Criterion", "Search", "Step", "allowed_loss", "criterion_of", "keep_in_float", "loss_of", "matching"]

Criterion = Literal["accuracy", "agreement", "relative error"]

# Of rows that are judged by the relative error of their outputs, those beyond it are lost.
_ROW_ERROR = 0.1
_TINY = 1e-12


def criterion_of(rows: Rows) -> Criterion:
    """Tell by what `loss_of` judges."""
    if not rows.scores:
        return "relative error"
    return "accuracy" if rows.labels else "agreement"


def allowed_loss(max_drop: float, rows: Rows) -> float:
    """Return the loss that is put up with: a share of rows in whole ones, as the judgement counts them."""
    return max(max_drop, most_lost_rows(max_drop, rows.count) / max(1, rows.count))


def loss_of(outputs: Mapping[str, np.ndarray], rows: Rows) -> float:
    """Return the share of rows that a variant gets wrong and the source does not; see the module.

    Args:
        outputs: what the variant answers to all the rows, by alias, `[rows.count, ...]` each.
        rows: the rows, with the source's answers.

    Returns:
        0 for a variant that loses nothing, and for no rows; at most 1.

    Raises:
        ExportError: an output is missing or has another shape than the source's.
    """
    if not rows.count:
        return 0.0
    expected = rows.load_outputs()
    for alias, want in expected.items():
        if alias not in outputs:
            raise ExportError(f"output {alias!r} is missing; the variant gives {', '.join(sorted(outputs)) or 'none'}")
        if outputs[alias].shape != want.shape:
            raise ExportError(f"output {alias!r} is {list(outputs[alias].shape)} and should be {list(want.shape)}")
    if not rows.scores:
        lost = np.zeros(rows.count, bool)
        for alias, want in expected.items():
            lost |= _rows_off(outputs[alias], want)
        return float(lost.mean())
    got, want = _choices(outputs[rows.scores]), _choices(expected[rows.scores])
    labels = rows.load_labels()
    if labels is None:
        return float((got != want).mean())
    return float((want == labels).mean() - (got == labels).mean())


def _choices(scores: np.ndarray) -> np.ndarray:
    """Return the place of the largest score of each row, -1 for a row with scores that are no numbers."""
    flat = scores.reshape(len(scores), -1).astype(np.float64)
    return np.where(np.isnan(flat).any(1), -1, flat.argmax(1))


def _rows_off(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Tell for each row, `[count] bool`, whether it is too far from the one that is expected."""
    axes = (len(want), -1)
    if want.dtype.kind not in "fVc":
        return np.asarray(np.any(got.reshape(axes) != want.reshape(axes), axis=1))
    wide = np.complex128 if want.dtype.kind == "c" else np.float64
    a, b = got.reshape(axes).astype(wide), want.reshape(axes).astype(wide)
    with np.errstate(invalid="ignore"):
        gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    size = np.linalg.norm(np.where(np.isfinite(b), b, 0.0), axis=1)
    error = np.linalg.norm(np.where(np.isnan(gap), np.inf, gap), axis=1)
    return np.asarray(error > np.maximum(_ROW_ERROR * size, _TINY))


def matching(patterns: Sequence[str], names: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Find the operations that the user excludes from quantization.

    Args:
        patterns: shell patterns, case counts; `*` also matches `/`.
        names: operation -> all the names that it is known by, such as its own and those in the original graph.

    Returns:
        operation -> the first pattern that one of its names matches.

    Raises:
        UsageError: a pattern matches nothing; says which names are near.
    """
    known = {key: set(aliases) | {key} for key, aliases in names.items()}
    found: dict[str, str] = {}
    for pattern in patterns:
        hits = [key for key, aliases in known.items() if any(fnmatch.fnmatchcase(name, pattern) for name in aliases)]
        if not hits:
            near = did_you_mean(pattern.strip("*"), {name for aliases in known.values() for name in aliases if name})
            raise UsageError(
                f"--exclude {pattern!r} matches no operation that would be quantized; {near}",
                hint="patterns are those of the shell, such as 'block4/*'; `moxserve inspect` lists the operations",
            )
        for key in hits:
            found.setdefault(key, pattern)
    return found


@dataclass(frozen=True)
class Step:
    """One try of a search.

    Attributes:
        kept: how many of the operations, the costliest first, stayed in floating point.
        loss: of the model made so; see `loss_of`.
    """

    kept: int
    loss: float


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        kept: the operations that stay in floating point, the costliest first; empty when none had to.
        loss: of the model made so.
        steps: the tries, in order.
    """

    kept: tuple[str, ...]
    loss: float
    steps: tuple[Step, ...]

    def as_json(self, costs: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Return the search for the report.

        Args:
            costs: operation -> error that it alone brings.
        """
        kept = [{"operation": name, **({"cost": costs[name]} if costs else {})} for name in self.kept]
        steps = [{"kept": step.kept, "loss": step.loss} for step in self.steps]
        return {"kept": kept, "loss": self.loss, "steps": steps}


def keep_in_float(
    ranking: Callable[[], Sequence[str]], loss_with: Callable[[Sequence[str]], float], max_drop: float
) -> Search:
    """Find the shortest run of the costliest operations that brings the loss within its limit.

    The number kept is doubled until it is enough, and then halved into: about `2 log2(n)` models are made. It takes it
    that more operations in floating point do not cost more; where that is wrong, the answer is within the limit
    nevertheless, only perhaps not the shortest.

    Args:
        ranking: gives the operations, the costliest first; only called when all quantized lose too much.
        loss_with: makes the model with these operations in floating point and returns its loss.
        max_drop: largest loss that is put up with.

    Returns:
        What was found.

    Raises:
        ExportError: not even a single operation can be quantized.
    """
    steps = [Step(0, loss_with(()))]
    if steps[0].loss <= max_drop:
        return Search((), steps[0].loss, tuple(steps))
    ranked = list(ranking())

    def enough(kept: int) -> bool:
        steps.append(Step(kept, loss_with(ranked[:kept])))
        return steps[-1].loss <= max_drop

    low, high = 0, 1
    while high < len(ranked) and not enough(high):
        low, high = high, 2 * high
    if high >= len(ranked):
        # Nothing quantized would be the float model: one operation at least must gain from all this.
        high = len(ranked) - 1
        if high <= low or not enough(high):
            raise ExportError(
                f"int8 loses {min(step.loss for step in steps):.2%} of the rows even with {max(high, low)} of "
                f"{len(ranked)} operations in floating point; {max_drop:.2%} is allowed",
                hint="--max-drop allows more, another --calibration may lose less; or leave int8 out",
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    best = next(step for step in reversed(steps) if step.kept == high)
    return Search(tuple(ranked[:high]), best.loss, tuple(steps))
