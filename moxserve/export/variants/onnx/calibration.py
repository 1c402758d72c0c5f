"""Ranges of activations, found on real rows: one batch at a time, so that memory does not grow with the rows.

ONNX Runtime's own calibrators keep every activation of every row (histograms) or a model without optimizations
(extremes), and its entropy method, at its 128 bins, has a single threshold to choose from; the ranges found here go
into its quantizer in their place.

A range is `[max(lowest, -t), min(highest, t)]` with one threshold `t` on the absolute value:

* minmax: `t` is the largest absolute value, nothing is cut off.
* percentile: the smallest `t` that holds this share of the values.
* entropy: the `t` whose histogram, cut off there and quantized, tells least apart from the whole one (Kullback-Leibler
  divergence; Migacz, "8-bit inference with TensorRT", GTC 2017). Exact zeros, of which a ReLU makes many and which
  quantization always represents, are left out of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from moxserve.errors import ExportError
from moxserve.export.targets import Calibration
from moxserve.export.variants.feeds import batch_size, batches
from moxserve.export.variants.onnx.model import initializers
from moxserve.export.variants.onnx.running import as_feeds, open_session, reason
from moxserve.export.variants.work import Rows
from moxserve.types import Signature

__all__ = ["Observed", "Ranges", "calibrate", "entropy_threshold", "percentile_threshold", "ranges_of"]

_BINS = 2048
_LEVELS = 255
_FIRST_CANDIDATE, _CANDIDATE_STEP = 128, 16
_BATCH_BYTES = 256 << 20
_MAX_ROWS = 32
Ranges = Mapping[str, tuple[float, float]]


@dataclass
class Observed:
    """What is known of one activation.

    Attributes:
        lowest: finite value.
        highest: finite value.
        zeros: how many values were exactly 0.
        histogram: `[2048] int64` of the absolute values of the others, from 0 to the largest.
    """

    lowest: float = 0.0
    highest: float = 0.0
    zeros: int = 0
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(_BINS, np.int64))

    @property
    def largest(self) -> float:
        """Largest absolute value."""
        return max(-self.lowest, self.highest)

    def add_extremes(self, values: np.ndarray) -> None:
        """Widen the extremes, which hold 0 in any case: it must be exact for padding."""
        low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
        if not np.isfinite(low) or not np.isfinite(high):
            finite = values[np.isfinite(values)]
            low, high = float(finite.min(initial=0.0)), float(finite.max(initial=0.0))
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)

    def add_histogram(self, values: np.ndarray) -> None:
        """Count values; the extremes must be known."""
        if not self.largest:
            self.zeros += values.size
            return
        size = np.abs(values.reshape(-1))
        size = size[size > 0]  # nor what is no number
        self.zeros += values.size - size.size
        places = np.minimum(size * np.float32(_BINS / self.largest), _BINS - 1).astype(np.int32)
        self.histogram += np.bincount(places, minlength=_BINS)

    def cut(self, threshold: float) -> tuple[float, float]:
        """Return the range for a threshold on the absolute value."""
        return max(self.lowest, -threshold), min(self.highest, threshold)


def percentile_threshold(observed: Observed, percent: float) -> float:
    """Return the smallest threshold that holds a share of the values, in percent."""
    total = observed.zeros + int(observed.histogram.sum())
    held = observed.zeros + np.cumsum(observed.histogram)
    bins = int(np.searchsorted(held, total * percent / 100.0)) + 1
    return observed.largest * min(bins, _BINS) / _BINS


def entropy_threshold(observed: Observed) -> float:
    """Return the threshold that loses least information; see the module."""
    counts = observed.histogram.astype(np.float64)
    if not counts.any():
        return observed.largest
    best, chosen = np.inf, _BINS
    for bins in range(_FIRST_CANDIDATE, _BINS + 1, _CANDIDATE_STEP):
        low, high = observed.cut(observed.largest * bins / _BINS)
        # The absolute values have as many of the levels as the larger side of the range.
        levels = max(int(_LEVELS * max(-low, high) / (high - low)), 2)
        divergence = _divergence(counts, bins, min(levels, bins))
        if divergence < best:
            best, chosen = divergence, bins
    return observed.largest * chosen / _BINS


def _divergence(counts: np.ndarray, bins: int, levels: int) -> float:
    """Return the Kullback-Leibler divergence of a histogram that is cut off and quantized from the one cut off."""
    inside = counts[:bins]
    reference = inside.copy()
    reference[-1] += counts[bins:].sum()
    starts = (np.arange(levels) * bins) // levels
    filled = (inside > 0).astype(np.float64)
    sums, members = np.add.reduceat(inside, starts), np.add.reduceat(filled, starts)
    share = np.divide(sums, members, out=np.zeros_like(sums), where=members > 0)
    quantized = np.repeat(share, np.diff(np.append(starts, bins))) * filled
    if not quantized.any():
        return float(np.inf)
    p, q = reference / reference.sum(), quantized / quantized.sum()
    there = p > 0
    return float((p[there] * np.log(p[there] / np.maximum(q[there], 1e-9))).sum())


@dataclass
class _Watch:
    """A model whose activations can be looked at.

    Attributes:
        session: gives all of them.
        tensors: their names; some may be inputs of the model.
        signature: of the model.
    """

    session: Any
    tensors: Sequence[str]
    signature: Signature

    def batches(self, rows: Rows, size: int) -> Iterator[dict[str, np.ndarray]]:
        """Give the activations of one batch after another, by name.

        Raises:
            ExportError: ONNX Runtime cannot run a batch.
        """
        for batch in batches(rows, size):
            feeds = as_feeds(batch, self.signature)
            made = [name for name in self.tensors if name not in feeds]
            try:
                values = self.session.run(made, feeds) if made else []
            except Exception as error:
                raise ExportError(f"calibration: ONNX Runtime cannot run real rows: {reason(error)}") from error
            given = {name: feeds[name] for name in self.tensors if name in feeds}
            yield {**dict(zip(made, values, strict=True)), **given}


def calibrate(
    model: Any, rows: Rows, signature: Signature, op_types: Iterable[str], settings: Calibration
) -> dict[str, Observed]:
    """Watch the activations around the operations of some types.

    Args:
        model: in float32, with inferred types.
        rows: real rows, at least one.
        signature: of the model.
        op_types: of the operations.
        settings: the method decides whether histograms are needed, for which the rows are run a second time.

    Returns:
        tensor -> what was seen.

    Raises:
        ExportError: ONNX Runtime cannot run them.
    """
    tensors = _activations(model, set(op_types))
    watch = _Watch(open_session(_with_outputs(model, tensors)), tensors, signature)
    observed = {name: Observed() for name in tensors}
    size = batch_size(signature) or _fitting(watch, rows)
    for values in watch.batches(rows, size):
        for name, value in values.items():
            observed[name].add_extremes(value)
    if settings.method != "minmax":
        for values in watch.batches(rows, size):
            for name, value in values.items():
                observed[name].add_histogram(value)
    return observed


def _fitting(watch: _Watch, rows: Rows) -> int:
    """Return how many rows' activations fit into the memory that is meant for them."""
    one = sum(value.nbytes for value in next(watch.batches(replace(rows, count=1), 1)).values())
    return max(1, min(_MAX_ROWS, rows.count, _BATCH_BYTES // max(1, one)))


def ranges_of(observed: Mapping[str, Observed], settings: Calibration) -> dict[str, tuple[float, float]]:
    """Choose the range of each activation by the method of the settings."""
    if settings.method == "percentile":
        return {name: o.cut(percentile_threshold(o, settings.percentile)) for name, o in observed.items()}
    if settings.method == "entropy":
        return {name: o.cut(entropy_threshold(o)) for name, o in observed.items()}
    return {name: (o.lowest, o.highest) for name, o in observed.items()}


def _activations(model: Any, op_types: set[str]) -> list[str]:
    """Return the float tensors that operations of some types read or make, in order, constants left out."""
    graph = model.graph
    floats = {
        value.name
        for value in (*graph.input, *graph.output, *graph.value_info)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    floats -= initializers(model).keys()
    near = [name for n in graph.node if n.op_type in op_types for name in (*n.input, *n.output)]
    return [name for name in dict.fromkeys(near) if name in floats]


def _with_outputs(model: Any, tensors: Sequence[str]) -> Any:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    there = {value.name for value in copy.graph.output}
    inputs = {value.name for value in copy.graph.input}
    known = {value.name: value for value in (*copy.graph.value_info, *copy.graph.input)}
    for name in tensors:
        if name not in there and name not in inputs:
            copy.graph.output.append(known[name])
    return copy
