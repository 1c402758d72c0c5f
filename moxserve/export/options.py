"""From what a user wrote, in a pipeline's `export:` or on the command line, to the options of an export job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from moxserve.config.models import ExportStage
from moxserve.errors import UsageError
from moxserve.export.targets import FORMATS, Calibration, VariantOptions, parse_targets

__all__ = ["DEFAULT_ROWS", "DEFAULT_ROWS_FOR_VARIANTS", "job_options", "read_stage", "sample_rows", "variant_options"]

DEFAULT_ROWS = 64
# Enough that one row in a hundred that comes out otherwise is seen.
DEFAULT_ROWS_FOR_VARIANTS = 256


def read_stage(values: Mapping[str, Any]) -> ExportStage:
    """Read the keys of an export stage that do not come from a file.

    Args:
        values: by key.

    Raises:
        UsageError: a key is unknown, or its value cannot be right.
    """
    try:
        return ExportStage.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{key}: {first['msg'].removeprefix('Value error, ')}") from None


def variant_options(stage: ExportStage) -> VariantOptions:
    """Read which variants are to be made, and how.

    Raises:
        UsageError: a precision that a format does not have, or an option that contradicts another.
    """
    targets = [t for name in FORMATS for word in getattr(stage, name) for t in parse_targets(name, word)]
    return VariantOptions(
        targets=tuple(dict.fromkeys(targets)),
        signature=stage.signature,
        transforms=stage.transforms,
        grappler=tuple(stage.grappler),
        xla=stage.xla,
        opset=stage.opset,
        calibration=Calibration(
            method=stage.calibration,
            percentile=stage.percentile,
            per_channel=stage.per_channel,
            exclude=tuple(stage.exclude),
            max_drop=stage.max_drop,
        ),
        calibration_rows=stage.calibration_rows,
        require=tuple(stage.require),
        limits=tuple(stage.limit),
        measure=stage.measure,
    )


def sample_rows(stage: ExportStage) -> int:
    """Return how many real rows an export wants: for verification, and as many more for calibration as are asked."""
    options = variant_options(stage)
    if not options.targets:
        return stage.samples or DEFAULT_ROWS
    needs_calibration = any(target.precision == "int8" for target in options.targets)
    return (stage.samples or DEFAULT_ROWS_FOR_VARIANTS) + (stage.calibration_rows if needs_calibration else 0)


def job_options(stage: ExportStage) -> dict[str, Any]:
    """Return the fields of a `JobOptions` that do not depend on the source."""
    return {
        "base_dir": stage.tf_serving,
        "model_name": stage.model_name,
        "warmup_batches": tuple(stage.warmup),
        "warmup_logs": tuple(stage.warmup_logs),
        "atol": stage.atol,
        "rtol": stage.rtol,
        "variants": variant_options(stage),
        "label_input": stage.label,
        "keep": stage.keep,
        "push": stage.push,
        "report_dir": stage.report or "",
        "op_libraries": tuple(stage.op_libraries),
    }
