"""The forms that a model can be exported in besides the SavedModel: names, precisions and options. No TensorFlow.

A target is a runtime's format in a precision; its name is the variant's folder and its key in reports and requirements:
`frozen`, `frozen_bf16`, `onnx`, `onnx_fp16`, `onnx_dynamic`, `onnx_int8`, `tflite_int8`, `openvino_bf16` and so on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from moxserve.errors import UsageError, did_you_mean

__all__ = [
    "FORMATS",
    "Calibration",
    "Precision",
    "Target",
    "VariantOptions",
    "parse_targets",
    "precision_of",
    "targets_by_name",
]

Precision = Literal["float32", "bfloat16", "float16", "dynamic", "int8"]
Method = Literal["minmax", "entropy", "percentile"]

# What each runtime computes in on the machines that it serves on; anything else is refused with this list.
FORMATS: Mapping[str, tuple[Precision, ...]] = {
    "frozen": ("float32", "bfloat16"),
    "onnx": ("float32", "float16", "dynamic", "int8"),
    "tflite": ("float32", "float16", "dynamic", "int8"),
    "openvino": ("float32", "bfloat16", "float16", "int8"),
}
# The oldest that tf2onnx writes, and the newest that ONNX 1.23 knows.
FIRST_OPSET, LAST_OPSET = 7, 28
_SUFFIXES: Mapping[Precision, str] = {
    "float32": "",
    "bfloat16": "_bf16",
    "float16": "_fp16",
    "dynamic": "_dynamic",
    "int8": "_int8",
}
_SPELLINGS: Mapping[str, Precision] = {
    "float32": "float32", "fp32": "float32", "f32": "float32", "float": "float32",
    "bfloat16": "bfloat16", "bf16": "bfloat16",
    "float16": "float16", "fp16": "float16", "f16": "float16", "half": "float16",
    "dynamic": "dynamic", "dynamic-range": "dynamic", "dynamic_range": "dynamic",
    "int8": "int8", "i8": "int8",
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One form to make.

    Attributes:
        format: `frozen`, `onnx`, `tflite` or `openvino`.
        precision: of its arithmetic; `dynamic` is int8 weights with activations quantized while it runs.
    """

    format: str
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        """Refuse what no runtime here computes.

        Raises:
            UsageError: the format is unknown, or it has no such precision.
        """
        if self.format not in FORMATS:
            raise UsageError(f"unknown format {self.format!r}; {did_you_mean(self.format, FORMATS)}")
        if self.precision not in FORMATS[self.format]:
            raise UsageError(
                f"{self.format} in {self.precision} is not made here; {self.format} has "
                f"{', '.join(FORMATS[self.format])}"
            )

    @property
    def name(self) -> str:
        """Name of the variant, such as `onnx_int8`."""
        return self.format + _SUFFIXES[self.precision]


def precision_of(word: str) -> Precision | None:
    """Return the precision that a word means in any usual spelling, None when it means none."""
    return _SPELLINGS.get(word.strip().lower())


def targets_by_name() -> dict[str, Target]:
    """Return every target that there is, by its name."""
    targets = [Target(name, precision) for name, precisions in FORMATS.items() for precision in precisions]
    return {target.name: target for target in targets}


def parse_targets(format_name: str, text: str) -> tuple[Target, ...]:
    """Read the precisions that a user asks of a format.

    Args:
        format_name: key of `FORMATS`.
        text: precisions with commas between, in any usual spelling, such as `fp32,int8`.

    Returns:
        One target for each, in order, none twice.

    Raises:
        UsageError: a precision is unknown or not one of this format.
    """
    targets = []
    for word in (part.strip().lower() for part in text.split(",")):
        if word not in _SPELLINGS:
            known = FORMATS.get(format_name, get_args(Precision))
            raise UsageError(f"{format_name} {word!r}: no such precision; {did_you_mean(word, known)}")
        targets.append(Target(format_name, _SPELLINGS[word]))
    return tuple(dict.fromkeys(targets))


@dataclass(frozen=True)
class Calibration:
    """How the ranges of int8 are found.

    Attributes:
        method: `minmax` takes the extremes, `percentile` cuts rare ones off, `entropy` minimises the information lost.
        percentile: for `percentile`: the share of values, in percent, that a range must hold.
        per_channel: one scale for each output channel of a weight, not one for the whole.
        exclude: shell patterns of operation names that stay in floating point.
        max_drop: largest loss that is put up with, as a share of the rows (of the labels where they are known, else of
            the source model's first choices): beyond it, the operations that cost most stay in floating point, too.
            None leaves all quantized, whatever it costs.
    """

    method: Method = "minmax"
    percentile: float = 99.99
    per_channel: bool = True
    exclude: tuple[str, ...] = ()
    max_drop: float | None = 0.01

    def __post_init__(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            UsageError: an unknown method, or a number out of its range.
        """
        if self.method not in get_args(Method):
            raise UsageError(f"calibration method {self.method!r}; {did_you_mean(self.method, get_args(Method))}")
        if not 50 < self.percentile <= 100:
            raise UsageError(f"calibration percentile {self.percentile!r}: expected more than 50, at most 100")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise UsageError(f"largest drop {self.max_drop!r}: expected a share between 0 and 1")


@dataclass(frozen=True)
class VariantOptions:
    """Which variants an export makes, and how.

    Attributes:
        targets: the forms; none for the SavedModel alone.
        signature: key of the signature that is converted; empty takes `serving_default`, or the only predict signature.
        transforms: Graph Transform Tool transforms of the frozen graph, in order; None takes the default ones.
        grappler: passes of TensorFlow's graph optimizer to run offline on the frozen graph, after the transforms.
        xla: mark the frozen graph for just-in-time compilation by XLA.
        opset: of ONNX.
        calibration: for int8.
        calibration_rows: real rows for it.
        require: conditions such as `int8.top1_agreement>=0.99`, or the name of a variant alone: without them nothing is
            published.
        limits: conditions that a variant must meet or is dropped with a warning.
        measure: also measure speed, load time and memory; verification is never left out.
    """

    targets: tuple[Target, ...] = ()
    signature: str = ""
    transforms: str | None = None
    grappler: tuple[str, ...] = ()
    xla: bool = False
    opset: int = 17
    calibration: Calibration = field(default_factory=Calibration)
    calibration_rows: int = 128
    require: Sequence[str] = ()
    limits: Sequence[str] = ()
    measure: bool = True

    def __post_init__(self) -> None:
        """Refuse what no converter can do, before any work is done.

        Raises:
            UsageError: the opset is none.
        """
        if not FIRST_OPSET <= self.opset <= LAST_OPSET:
            raise UsageError(f"ONNX opset {self.opset}: expected {FIRST_OPSET} to {LAST_OPSET}; 17 suits most")

    def without_effect(self) -> tuple[str, ...]:
        """Return one sentence for each option that was given, and has no effect beside the others."""
        unset, formats = VariantOptions(), {target.format for target in self.targets}
        usual, int8 = unset.calibration, any(target.precision == "int8" for target in self.targets)
        asked = self.calibration
        quantizing = (asked.method, asked.per_channel, asked.exclude, self.calibration_rows)
        usually = (usual.method, usual.per_channel, usual.exclude, unset.calibration_rows)
        found = {
            "transforms": bool(self.transforms) and not formats and "no variant is made",
            "grappler": bool(self.grappler) and not formats and "no variant is made",
            "xla": self.xla and Target("frozen") not in self.targets and "no frozen graph in float32 is made",
            "opset": self.opset != unset.opset and "onnx" not in formats and "no ONNX model is made",
            "calibration": quantizing != usually and not int8 and "no int8 variant is made",
            "percentile": asked.percentile != usual.percentile
            and asked.method != "percentile"
            and f"the calibration is by {asked.method}",
        }
        return tuple(f"{option} has no effect: {why}" for option, why in found.items() if why)
