"""One ONNX variant from beginning to end: float32, then the precision that was asked for, checked and loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moxserve.errors import ExportError
from moxserve.export.variants import quality
from moxserve.export.variants.onnx import emitting, learned, reduced
from moxserve.export.variants.onnx.calibration import calibrate, ranges_of
from moxserve.export.variants.onnx.floating import convert_graph, read_graph
from moxserve.export.variants.onnx.model import MODEL_FILE, op_counts, opset_of, output_names, save
from moxserve.export.variants.onnx.origins import label_of, names_of_operations
from moxserve.export.variants.onnx.running import Feeder, answers, open_session
from moxserve.export.variants.onnx.search import Candidate, Quantizer
from moxserve.export.variants.onnx.static import HEAVY, LIGHT, heavy_operations, prepare
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
    graph_def = read_graph(work.model)
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
    labels = {name: label_of(name, known, graph_def) for name, known in names.items()}
    left = [labels[node.name] for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    notes = [f"{len(left)} convolutions stay in float32: quantized dynamically they would be slower"] if left else []
    kept = dict.fromkeys(left, "convolutions are slower")
    kept |= {labels[name]: f"--exclude {pattern}" for name, pattern in excluded.items()}
    return (
        quantized,
        [*notes, *_simulated(graph_def)],
        {
            "quantized": [labels[name] for name in chosen],
            "kept_in_float": kept,
        },
    )


def _int8(work: Work, graph_def: Any) -> _Result:
    settings = work.settings
    _check_opset(work.opset, settings.per_channel)
    feeder = Feeder.of(work.calibration, work.signature)
    if not feeder.count:
        raise ExportError(
            "int8 needs real rows to find ranges with, and there are none",
            hint="give the export samples, or train with quantization; --onnx dynamic needs neither",
        )
    model = _convert(work, graph_def)
    prepared = prepare(model)
    heavy = heavy_operations(prepared)
    names = names_of_operations(prepared, model, graph_def, work.signature)
    excluded = quality.matching(settings.exclude, {name: names[name] for name in heavy})
    chosen = [name for name in heavy if name not in excluded]
    if not chosen:
        why = (
            "--exclude leaves nothing to quantize"
            if excluded
            else "the model has no operations with weights in float32 outside of loops"
        )
        raise ExportError(f"int8: {why}")
    observed = calibrate(prepared, feeder, (*HEAVY, *LIGHT), settings)
    labels = {name: label_of(name, names[name], graph_def) for name in heavy}
    ranges = ranges_of(observed, settings)
    quantizer = Quantizer(prepared, ranges, settings.per_channel, {name: labels[name] for name in chosen})
    best = quantizer.within(work)
    kept = {labels[name]: f"--exclude {pattern}" for name, pattern in excluded.items()}
    kept |= {name: f"costs accuracy: a relative error of {cost:.2g} alone" for name, cost in best.kept.items()}
    details = {
        "calibration": {
            "method": settings.method,
            "rows": feeder.count,
            "per_channel": settings.per_channel,
            **({"percentile": settings.percentile} if settings.method == "percentile" else {}),
        },
        "quantized": list(best.quantized),
        "kept_in_float": kept,
        "search": best.search,
    }
    return best.model, _notes(best, work), details


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
    labels = {name: label_of(name, names[name], graph_def) for name in heavy}
    kept = {labels[name]: f"--exclude {pattern}" for name, pattern in excluded.items()}
    kept |= {labels[name]: reason for name, reason in left.items()}
    rows, search = work.evaluation, None
    if rows.count:
        loss = quality.loss_of(answers(model, Feeder.of(rows, work.signature), output_names(work.signature)), rows)
        search = {"criterion": quality.criterion_of(rows), "rows": rows.count, "loss": loss}
    details = {
        "calibration": {"method": "learned", "per_channel": any(w.grid.scale.ndim for w in weights)},
        "quantized": [labels[name] for name in done],
        "kept_in_float": kept,
        "search": search,
    }
    notes = [f"{len(left)} operations stay in float32: {', '.join(labels[name] for name in left)}"] if left else []
    return model, notes, details


def _check_opset(opset: int, per_channel: bool) -> None:
    least = 13 if per_channel else 10
    if opset < least:
        raise ExportError(
            f"int8 {'with a scale for each channel ' if per_channel else ''}needs opset {least}, not {opset}",
            hint=f"--opset {least} or higher",
        )


def _notes(best: Candidate, work: Work) -> list[str]:
    if best.search is None:
        if work.settings.max_drop is None:
            return []
        return ["what int8 costs was not looked at: there are no rows to judge it with"]
    loss, criterion = best.search["loss"], best.search["criterion"]
    if not best.kept:
        return []
    names = ", ".join(best.kept)
    before = best.search["steps"][0]["loss"]
    return [
        f"{len(best.kept)} operations stay in float32, so that int8 loses {loss:.2%} and not {before:.2%} of the rows "
        f"({criterion}): {names}"
    ]
