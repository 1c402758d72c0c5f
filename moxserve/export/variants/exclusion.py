"""Which operations an int8 model keeps in floating point, for runtimes that can be told by name. NumPy only.

`quality` tells the loss and searches; here models are made and asked on the way. Operations are ranked by the error
that each brings alone, all others being in floating point.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from moxserve.errors import ExportError
from moxserve.export.variants.feeds import Call, answers
from moxserve.export.variants.quality import Search, allowed_loss, criterion_of, keep_in_float, loss_of
from moxserve.export.variants.work import Rows, Work

__all__ = ["Chosen", "choose", "no_rows", "nothing_left"]

Model = TypeVar("Model")

_RANKING_ROWS = 16
_TINY = 1e-12


@dataclass(frozen=True)
class Chosen(Generic[Model]):
    """What was decided.

    Attributes:
        model: with the operations in floating point.
        kept: the operations that the search added.
        details: of the search, for the report; empty when there was none.
        notes: for the user.
    """

    model: Model
    kept: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def choose(
    work: Work,
    operations: Sequence[str],
    make: Callable[[Collection[str]], Model],
    opened: Callable[[Model], Call],
    rough: Callable[[Collection[str]], Model] | None = None,
) -> Chosen[Model]:
    """Quantize everything, or, where that loses more than is allowed, all but the operations that cost most.

    Args:
        work: gives the limit and the rows; without evaluation rows, the calibration's are judged by.
        operations: that may stay in floating point.
        make: makes the model with these operations in floating point.
        opened: makes a model ready to be asked.
        rough: makes a model quickly, for the ranking only; None takes `make`.

    Raises:
        ExportError: it loses too much, whatever is left out.
    """
    rows = work.evaluation if work.evaluation.count else work.calibration
    limit = work.settings.max_drop
    if limit is None:
        return Chosen(make(()))
    if not rows.count or not rows.outputs:
        return Chosen(make(()), notes=("nobody knows what int8 costs: there are no real rows to try it on",))
    newest: dict[str, Any] = {}

    def make_again(kept: Sequence[str]) -> Model:
        if newest.get("kept") != tuple(kept):
            newest.update(kept=tuple(kept), model=make(kept))
        return newest["model"]

    def loss_with(kept: Sequence[str]) -> float:
        return loss_of(answers(opened(make_again(kept)), work.signature, rows), rows)

    costs: dict[str, float] = {}

    def ranking() -> Sequence[str]:
        for name in operations:
            model = (rough or make)([other for other in operations if other != name])
            costs[name] = _error(answers(opened(model), work.signature, rows, _RANKING_ROWS), rows)
        return sorted(costs, key=lambda name: -costs[name])

    search = keep_in_float(ranking, loss_with, allowed_loss(limit, rows))
    facts = {"criterion": criterion_of(rows), "rows": rows.count, "max_drop": limit}
    details = {**facts, **search.as_json(costs or None)}
    return Chosen(make_again(search.kept), search.kept, details, _notes(search))


def no_rows(work: Work) -> ExportError:
    """Return the error of an int8 model without real rows to calibrate it with."""
    return ExportError(
        f"{work.target.name} needs real rows to find the ranges of its activations with, and there are none",
        hint="give rows to the export, or train with quantization, which learns the ranges",
    )


def nothing_left(excluded: Collection[str]) -> ExportError:
    """Return the error of a model without anything to quantize.

    Args:
        excluded: the operations that the user excludes.
    """
    if excluded:
        return ExportError("int8: --exclude leaves nothing to quantize")
    return ExportError("int8: the model has no operations with weights that could be quantized, outside of loops")


def _notes(search: Search) -> tuple[str, ...]:
    if not search.kept:
        return ()
    names = ", ".join(search.kept[:3]) + (f" and {len(search.kept) - 3} more" if len(search.kept) > 3 else "")
    return (
        f"{len(search.kept)} operations stay in floating point, since int8 lost {search.steps[0].loss:.2%} of the "
        f"rows with them and {search.loss:.2%} without: {names}",
    )


def _error(got: Mapping[str, np.ndarray], rows: Rows) -> float:
    """Return the relative error over all outputs that are real numbers; of others the share that differs."""
    gap, size = 0.0, 0.0
    for alias, want in rows.load_outputs().items():
        have = got[alias]
        want = want[: len(have)] if want.ndim else want
        if want.dtype.kind not in "fV":
            gap += float((have != want).mean()) if want.size else 0.0
            continue
        a, b = have.astype(np.float64), want.astype(np.float64)
        gap += float(np.sum((a - b) ** 2)) / max(float(np.sum(b**2)), _TINY)
        size += 1
    return gap / max(size, 1.0)
