"""One ONNX variant from beginning to end: float32, then the precision that was asked for, checked and loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moxserve.errors import ExportError
from moxserve.export.variants import quality
from moxserve.export.variants.exclusion import choose, no_rows, nothing_left
from moxserve.export.variants.feeds import answers
from moxserve.export.variants.learned import read_frozen
from moxserve.export.variants.onnx import emitting, learned, reduced
from moxserve.export.variants.onnx.calibration import calibrate, ranges_of
from moxserve.export.variants.onnx.floating import convert_graph
from moxserve.export.variants.onnx.model import MODEL_FILE, op_counts, opset_of, save
from moxserve.export.variants.onnx.origins import labels_of, names_of_operations
from moxserve.export.variants.onnx.running import open_session, opened
from moxserve.export.variants.onnx.static import HEAVY, LIGHT, heavy_operations, plan, prepare, quantize
from moxserve.export.variants.work import Work

__all__ = ["Made", "make"]


@dataclass(frozen=True)
class Made:
    """A model file in the work's directory.

    Attributes:
        file: its name.
        notes: for the user.
        details: for the report.
    """

    file: str
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


_Result = tuple[Any, Sequence[str], Mapping[str, Any]]


def make(work: Work) -> Made:
    """Make the variant; see `Converter`."""
    graph_def = read_frozen(work)
    makers: Mapping[str, Callable[[Work, Any], _Result]] = {
        "float32": _float32,
        "float16": _float16,
        "dynamic": _dynamic,
        "int8": _learned_int8 if work.learned else _int8,
    }
    model, notes, details = makers[work.target.precision](work, graph_def)
    save(model, work.directory)
    path = os.path.join(work.directory, MODEL_FILE)
    open_session(path)  # what the checker lets pass may still have no kernel
    size = sum(entry.stat().st_size for entry in os.scandir(work.directory))
    facts = {"opset": opset_of(model), "operations": op_counts(model), "size_bytes": size, **details}
    return Made(MODEL_FILE, tuple(notes), facts)


def _float32(work: Work, graph_def: Any) -> _Result:
    return _convert(work, graph_def), _simulated(graph_def), {}


def _float16(work: Work, graph_def: Any) -> _Result:
    model, notes = reduced.to_float16(_convert(work, graph_def))
    return model, (*notes, *_simulated(graph_def)), {}


def _convert(work: Work, graph_def: Any) -> Any:
    if learned.has_ranges(graph_def):
        graph_def = learned.simulate(graph_def)
    return convert_graph(graph_def, work.signature, work.opset)


def _simulated(graph_def: Any) -> tuple[str, ...]:
    if not learned.has_ranges(graph_def):
        return ()
    return ("quantization that was learned is simulated in floating point, as in the source; int8 is the fast form",)


def _dynamic(work: Work, graph_def: Any) -> _Result:
    model = _convert(work, graph_def)
    candidates = reduced.dynamic_operations(model)
    if not candidates:
        raise ExportError(
            "dynamic quantization has nothing to do: the model has no matrix product, embedding or LSTM with weights",
            hint="convolutions gain from int8, with calibration: --onnx int8",
        )
    names = names_of_operations(model, model, graph_def, work.signature)
    excluded = quality.matching(work.settings.exclude, {name: names[name] for name in candidates})
    chosen = [name for name in candidates if name not in excluded]
    if not chosen:
        raise ExportError("--exclude leaves nothing to quantize dynamically")
    quantized = reduced.to_dynamic(model, chosen, work.settings.per_channel)
    convolutions = [node.name for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    labels = labels_of({name: names[name] for name in (*candidates, *convolutions)}, graph_def)
    left = [labels[name] for name in convolutions]
    notes = [f"{len(left)} convolutions stay in float32: quantized dynamically they would be slower"] if left else []
    reasons = {**dict.fromkeys(left, "it would be slower"), **_excluded(excluded, labels)}
    details = {"quantized": [labels[name] for name in chosen], "float": _listed(reasons)}
    return quantized, [*notes, *_simulated(graph_def)], details


def _excluded(excluded: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, str]:
    return {labels[name]: f"excluded by {pattern!r}" for name, pattern in excluded.items()}


def _listed(reasons: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"operation": name, "reason": reason} for name, reason in reasons.items()]


def _int8(work: Work, graph_def: Any) -> _Result:
    settings, rows = work.settings, work.calibration
    _check_opset(work.opset, settings.per_channel)
    if not rows.count:
        raise no_rows(work)
    model = _convert(work, graph_def)
    prepared = prepare(model)
    heavy = heavy_operations(prepared)
    names = names_of_operations(prepared, model, graph_def, work.signature)
    labels = labels_of({name: names[name] for name in heavy}, graph_def)
    excluded = quality.matching(settings.exclude, {name: names[name] for name in heavy})
    nodes = {labels[name]: name for name in heavy if name not in excluded}
    if not nodes:
        raise nothing_left(excluded)
    ranges = ranges_of(calibrate(prepared, rows, work.signature, (*HEAVY, *LIGHT), settings), settings)

    def quantized(kept: Collection[str]) -> Any:
        planned = plan(prepared, [node for label, node in nodes.items() if label not in kept])
        return quantize(prepared, ranges, planned, settings.per_channel)

    chosen = choose(work, list(nodes), quantized, lambda made: opened(made, work.signature))
    facts: dict[str, Any] = {"method": settings.method, "rows": rows.count, "per_channel": settings.per_channel}
    if settings.method == "percentile":
        facts["percentile"] = settings.percentile
    details: dict[str, Any] = {
        "calibration": facts,
        "quantized": [label for label in nodes if label not in chosen.kept],
        "float": _listed({**_excluded(excluded, labels), **dict.fromkeys(chosen.kept, "costs accuracy")}),
    }
    if chosen.details:
        details["search"] = chosen.details
    return chosen.model, chosen.notes, details


def _learned_int8(work: Work, graph_def: Any) -> _Result:
    _check_opset(work.opset, per_channel=True)
    marked, weights = learned.mark(graph_def)
    model = convert_graph(marked, work.signature, work.opset)
    emitting.merge_biases(model)
    heavy = emitting.learned_operations(model)
    names = names_of_operations(model, model, graph_def, work.signature)
    excluded = quality.matching(work.settings.exclude, {name: names[name] for name in heavy})
    done, left = emitting.emit_weights(model, weights, excluded.keys())
    if not done:
        raise ExportError(
            "int8: no operation has learned ranges both of its input and of its weights",
            hint="train with quantization on, or export without it to find ranges on real rows",
        )
    labels = labels_of({name: names[name] for name in heavy}, graph_def)
    details: dict[str, Any] = {
        "calibration": {"method": "learned", "per_channel": any(w.grid.scale.ndim for w in weights)},
        "quantized": [labels[name] for name in done],
        "float": _listed({**_excluded(excluded, labels), **{labels[name]: why for name, why in left.items()}}),
    }
    rows = work.evaluation
    if rows.count and rows.outputs:
        loss = quality.loss_of(answers(opened(model, work.signature), work.signature, rows), rows)
        details["search"] = {"criterion": quality.criterion_of(rows), "loss": loss}
    notes = [f"{len(left)} operations stay in float32: {', '.join(labels[name] for name in left)}"] if left else []
    return model, notes, details


def _check_opset(opset: int, per_channel: bool) -> None:
    least = 13 if per_channel else 10
    if opset < least:
        raise ExportError(
            f"int8 {'with a scale for each channel ' if per_channel else ''}needs opset {least}, not {opset}",
            hint=f"--opset {least} or higher",
        )
