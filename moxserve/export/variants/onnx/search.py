"""Which operations of an int8 model stay in float32, so that it loses no more than it may.

Every operation with weights is quantized alone, and the error that this brings to the outputs ranks it. A single huge
channel in an activation shows at the operation that makes it and at those that read it; so both come first. How many
stay in float32 is then searched for with the real loss (`quality.keep_in_float`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from moxserve.export.variants import quality
from moxserve.export.variants.onnx.calibration import Ranges
from moxserve.export.variants.onnx.model import output_names
from moxserve.export.variants.onnx.running import Feeder, answers
from moxserve.export.variants.onnx.static import plan, quantize
from moxserve.export.variants.work import Work

__all__ = ["Candidate", "Quantizer"]

_RANKING_ROWS = 32
_TINY = 1e-12


@dataclass(frozen=True)
class Candidate:
    """An int8 model.

    Attributes:
        model: the ModelProto.
        quantized: the operations with weights that are int8, as the user knows them.
        kept: operation that the search kept in float32, as the user knows it -> error that it brings alone.
        search: the facts of the search for the report; None when there were no rows, or nobody asked.
    """

    model: Any
    quantized: tuple[str, ...]
    kept: Mapping[str, float] = field(default_factory=dict)
    search: Mapping[str, Any] | None = None


@dataclass
class Quantizer:
    """Makes int8 models of one float32 model, with more or less of it quantized.

    Attributes:
        model: prepared, in float32.
        ranges: of its activations.
        per_channel: a scale for each output channel of a weight.
        heavy: operation with weights that may be quantized -> its name for the user.
    """

    model: Any
    ranges: Ranges
    per_channel: bool
    heavy: Mapping[str, str]

    def without(self, kept: Sequence[str]) -> Any:
        """Make the model with all but some operations quantized."""
        return self._of([name for name in self.heavy if name not in set(kept)])

    def _of(self, names: Sequence[str]) -> Any:
        return quantize(self.model, self.ranges, plan(self.model, names), self.per_channel)

    def within(self, work: Work) -> Candidate:
        """Make the model that loses no more on the evaluation rows than the settings allow.

        Raises:
            ExportError: no such model is found.
        """
        rows, limit = work.evaluation, work.settings.max_drop
        if not rows.count or limit is None:
            return Candidate(self.without(()), tuple(self.heavy.values()))
        feeder = Feeder.of(rows, work.signature)
        outputs = output_names(work.signature)
        costs: dict[str, float] = {}

        def loss_with(kept: Sequence[str]) -> float:
            return quality.loss_of(answers(self.without(kept), feeder, outputs), rows)

        def ranking() -> list[str]:
            costs.update(self._costs(feeder, outputs))
            return sorted(costs, key=costs.__getitem__, reverse=True)

        found = quality.keep_in_float(ranking, loss_with, limit)
        kept = {self.heavy[name]: costs[name] for name in found.kept}
        shown = replace(found, kept=tuple(kept))
        facts = {"criterion": quality.criterion_of(rows), "rows": rows.count, "max_drop": limit, **shown.as_json(kept)}
        quantized = tuple(label for name, label in self.heavy.items() if name not in found.kept)
        return Candidate(self.without(found.kept), quantized, kept, facts)

    def _costs(self, feeder: Feeder, outputs: Mapping[str, str]) -> dict[str, float]:
        """Return the error that each operation brings when it alone is quantized."""
        few = feeder.head(_RANKING_ROWS)
        reference = answers(self.model, few, outputs)
        return {name: _error(answers(self._of([name]), few, outputs), reference) for name in self.heavy}


def _error(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> float:
    """Return the largest relative error of any floating-point output; of none, the largest share of other values."""
    floats = [alias for alias, array in want.items() if array.dtype.kind == "f"]
    if not floats:
        return max(float((got[alias] != want[alias]).mean()) for alias in want)
    errors = []
    for alias in floats:
        gap = np.linalg.norm(got[alias].astype(np.float64) - want[alias].astype(np.float64))
        errors.append(float(gap / max(float(np.linalg.norm(want[alias])), _TINY)))
    return max(error if np.isfinite(error) else np.inf for error in errors)
