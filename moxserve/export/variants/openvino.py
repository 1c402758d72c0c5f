"""OpenVINO: `model.xml` and `model.bin` by its own reader of TensorFlow's graphs, in float32, 16 bits, or int8 by NNCF.

float16 halves the file and computes in float32; bfloat16 is what CPUs with AMX are fast in. The file says itself which
of both it is to be computed in, as the manifest does: left alone, OpenVINO takes bfloat16 wherever it can.

OpenVINO 2026.4 computes int8 convolutions of very few pixels wrongly for a single row, or ends the process: seen with
1 x 1 places, and with depthwise ones of 2 x 2, among them those of ResNet-50 and MobileNetV2 at 32 x 32. These stay in
floating point. What is made is tried with one row and with several (`trial`); where it fails, more of them do.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moxserve.errors import ExportError, MissingExtraError, VerificationError
from moxserve.export.manifest import TensorNames
from moxserve.export.variants.exclusion import choose, no_rows, nothing_left
from moxserve.export.variants.feeds import Call, batch_size, batches
from moxserve.export.variants.learned import refuse_floating, with_ranges
from moxserve.export.variants.openvino_graph import (
    Doubtful,
    has_attention,
    known_names,
    quantized_operations,
    read_graph,
)
from moxserve.export.variants.quality import matching
from moxserve.export.variants.trial import try_out
from moxserve.export.variants.work import Built, Work
from moxserve.serving.backends.openvino import SERVED_TYPES, import_openvino, reason_of, reports_withheld

__all__ = ["convert"]

_FILE = "model.xml"
_HINTS = {"float32": "f32", "float16": "f32", "bfloat16": "bf16", "int8": "f32"}
_HINT_PATH = ["runtime_options", "INFERENCE_PRECISION_HINT"]
# OpenVINO's graphs carry no signatures: a server that finds nothing else beside them calls theirs so.
_OWN_SIGNATURE = "serving_default"
_RANKING_ROWS = 16
_FEW_PIXELS = "a convolution of few pixels, which OpenVINO may compute wrongly in int8"
# Tried one after another; the first holds all that is known to be wrong.
_DOUBTFUL = (Doubtful(dense=1, grouped=4), Doubtful(dense=16, grouped=64))


@dataclass
class _Made:
    """An OpenVINO model, and what is to be told of how it was made."""

    model: Any
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def convert(work: Work) -> Built:
    """Make the variant; see `Converter`.

    Raises:
        MissingExtraError: OpenVINO, or NNCF for int8, is not installed.
        ExportError: an operation has no form in OpenVINO, int8 has no rows to find ranges with or loses too much, or
            OpenVINO computes what was made wrongly.
        UsageError: a pattern of operations to exclude matches none.
    """
    import_openvino("an OpenVINO variant")
    for alias, spec in (*work.signature.inputs.items(), *work.signature.outputs.items()):
        if spec.dtype.name not in SERVED_TYPES:
            raise ExportError(
                f"OpenVINO has no {spec.dtype.name}, of which {alias!r} is", hint="ONNX and TFLite may do"
            )
    try:
        made = _int8(work) if work.target.precision == "int8" else _floating(work)
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot run the graph: {reason_of(error)}") from error
    operations = Counter(node.get_type_name() for node in made.model.get_ops())
    aliases = (dict.fromkeys(work.signature.inputs), dict.fromkeys(work.signature.outputs))
    names = TensorNames(inputs={a: a for a in aliases[0]}, outputs={a: a for a in aliases[1]})
    details = {"operations": dict(sorted(operations.items())), "inference_precision": _HINTS[work.target.precision]}
    return Built(_FILE, names, tuple(made.notes), {**details, **made.details})


def _floating(work: Work) -> _Made:
    refuse_floating(work)
    made = _Made(read_graph(work.model, work.signature))
    _save(made, work)
    if work.target.precision == "float16":
        made.notes.append("the weights are float16, the arithmetic is float32: CPUs gain nothing but the size")
    return made


def _int8(work: Work) -> _Made:
    """Make int8, and try it; with less in int8 where OpenVINO computes it wrongly.

    Raises:
        VerificationError: it is wrong even so.
    """

    def make(doubtful: Doubtful) -> _Made:
        made = _learned(work, doubtful) if work.learned else _quantized(work, doubtful)
        _save(made, work)
        return made

    *first, last = _DOUBTFUL
    for doubtful in first:
        with contextlib.suppress(VerificationError):
            return make(doubtful)
    return make(last)


def _save(made: _Made, work: Work) -> None:
    """Write the files, and let the server's backend try them.

    Raises:
        VerificationError: they cannot be run, or answer otherwise to one row than to several.
    """
    import openvino as ov

    made.model.set_rt_info(_HINTS[work.target.precision], _HINT_PATH)
    path = os.path.join(work.directory, _FILE)
    ov.save_model(made.model, path, compress_to_fp16=work.target.precision == "float16")
    try_out(work, _OWN_SIGNATURE)


def _import_nncf() -> Any:
    import logging

    kind = logging.getLoggerClass()
    try:
        with reports_withheld():
            import nncf
    except ModuleNotFoundError as error:
        if error.name != "nncf":
            raise
        raise MissingExtraError("nncf", "export", "OpenVINO in int8") from None
    finally:
        logging.setLoggerClass(kind)  # NNCF would have every logger of the process be one of its own
    # Its own `set_log_level` also changes handlers that are not its own.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


# --- int8 by calibration


def _quantized(work: Work, doubtful: Doubtful) -> _Made:
    if not work.calibration.count:
        raise no_rows(work)
    quantizer = _Quantizer(work, read_graph(work.model, work.signature))
    small = doubtful.among(quantizer.model)
    # One row tells as well as many which operations are quantized at all.
    operations = quantized_operations(quantizer.run([], rows=1))
    names = known_names(quantizer.model)
    labels = _labels(names)
    excluded = matching(work.settings.exclude, {name: names[name] for name in operations})
    always = [*small, *excluded]
    left = {labels[name]: name for name in operations if name not in set(always)}
    if not any(names[name] for name in left.values()):
        raise nothing_left(excluded)

    def make(kept: Collection[str]) -> Any:
        return quantizer.run([*always, *(left[label] for label in kept)])

    def make_roughly(kept: Collection[str]) -> Any:
        return quantizer.run([*always, *(left[label] for label in kept)], rows=_RANKING_ROWS)

    chosen = choose(work, list(left), make, _opened, make_roughly)
    reasons = {
        **{labels[name]: _FEW_PIXELS for name in small},
        **{labels[name]: f"excluded by {pattern!r}" for name, pattern in excluded.items()},
        **dict.fromkeys(chosen.kept, "costs accuracy"),
    }
    facts: dict[str, Any] = {
        "method": work.settings.method, "rows": work.calibration.count, "per_channel": work.settings.per_channel
    }  # fmt: skip
    if work.settings.method == "percentile":
        facts["percentile"] = work.settings.percentile
    details: dict[str, Any] = {
        "calibration": facts,
        "quantized": [label for label, name in left.items() if names[name] and label not in chosen.kept],
        "float": [{"operation": label, "reason": reason} for label, reason in reasons.items()],
    }
    if chosen.details:
        details["search"] = chosen.details
    return _Made(chosen.model, details, [*chosen.notes, *_remarks(work, small)])


def _labels(names: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Return what the user knows each operation by: its name in TensorFlow's graph, where only one can be meant."""
    wanted = {own: min(known, default=own) for own, known in names.items()}
    taken = Counter(wanted.values())
    return {own: label if taken[label] == 1 else own for own, label in wanted.items()}


def _remarks(work: Work, small: Collection[str]) -> list[str]:
    if work.settings.method != "entropy":
        return _of_small(small)
    return [
        "NNCF has no calibration by entropy; its ranges are those with the smallest error over a histogram",
        *_of_small(small),
    ]


def _of_small(small: Collection[str]) -> list[str]:
    if not small:
        return []
    return [f"{len(small)} convolutions of few pixels stay in float32: OpenVINO's int8 may be wrong there"]


@dataclass
class _Quantizer:
    """Makes int8 models of one float32 model by NNCF.

    Attributes:
        work: gives the rows and the settings.
        model: in float32; not changed.
    """

    work: Work
    model: Any

    def run(self, in_float: Collection[str], rows: int | None = None) -> Any:
        """Quantize all but some operations.

        Args:
            in_float: their names.
            rows: of the calibration, for a rough model quickly; None takes all, and corrects biases afterwards.
        """
        nncf = _import_nncf()
        count = self.work.calibration.count if rows is None else min(rows, self.work.calibration.count)
        size = batch_size(self.work.signature) or 1
        data = nncf.Dataset(list(batches(self.work.calibration, size, count)))
        return nncf.quantize(
            self.model,
            data,
            # Activations that are not symmetric round better so, and are as fast.
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=max(1, count // size),
            model_type=nncf.ModelType.TRANSFORMER if has_attention(self.model) else None,
            ignored_scope=nncf.IgnoredScope(names=list(in_float), validate=False),
            advanced_parameters=self._parameters(nncf, rough=rows is not None),
        )

    def _parameters(self, nncf: Any, rough: bool) -> Any:
        from nncf.quantization.advanced_parameters import QuantizationParameters

        return nncf.AdvancedQuantizationParameters(
            disable_bias_correction=rough,
            activations_range_estimator_params=self._ranges(),
            weights_quantization_params=QuantizationParameters(per_channel=self.work.settings.per_channel),
        )

    def _ranges(self) -> Any:
        from nncf.quantization import range_estimator as ranges

        settings = self.work.settings
        if settings.method == "minmax":
            return ranges.RangeEstimatorParametersSet.MINMAX
        if settings.method == "entropy":
            return ranges.RangeEstimatorParametersSet.HISTOGRAM
        end = ranges.StatisticsCollectorParameters(
            statistics_type=ranges.StatisticsType.QUANTILE,
            aggregator_type=ranges.AggregatorType.MEAN,
            quantile_outlier_prob=1 - settings.percentile / 100,
        )
        return ranges.RangeEstimatorParameters(min=end, max=end)


def _opened(model: Any) -> Call:
    """Compile a model as the server does, for one caller."""
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    aliases = [next(iter(port.get_names())) for port in model.outputs]

    def call(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        request.infer(dict(inputs))
        return {alias: request.get_output_tensor(i).data.copy() for i, alias in enumerate(aliases)}

    return call


# --- int8 by learned ranges


def _learned(work: Work, doubtful: Doubtful) -> _Made:
    """Convert a graph with fake quantization: OpenVINO computes what lies between two ranges in int8."""
    with with_ranges(work) as (folder, excluded):
        model = read_graph(folder, work.signature)
    names = known_names(model)
    small = sorted({name for found in doubtful.among(model) for name in names[found]} - set(excluded))
    if small:
        with with_ranges(work, small) as (folder, excluded):
            model = read_graph(folder, work.signature)
    reasons = {
        **{name: f"excluded by {pattern!r}" for name, pattern in excluded.items()},
        **dict.fromkeys(small, _FEW_PIXELS),
    }
    names = known_names(model)
    labels = _labels(names)
    details: dict[str, Any] = {
        "calibration": {"method": "learned"},
        "quantized": [labels[name] for name in quantized_operations(model) if names[name]],
        "float": [{"operation": name, "reason": reason} for name, reason in reasons.items()],
    }
    return _Made(model, details, _of_small(small))
