"""Puts together the report of an export from what its steps found."""

from __future__ import annotations

from dataclasses import asdict
from importlib import metadata
from typing import Any

from moxserve import __version__
from moxserve.export.job import JobOptions
from moxserve.export.report.model import Report, SourceFacts
from moxserve.export.sources.base import StagedModel
from moxserve.export.transforms.catalogue import DEFAULT_TRANSFORMS
from moxserve.export.variants.make import MadeVariants

__all__ = ["report_of", "tools"]

# What has a hand in an export, by the name that it is installed under.
_TOOLS = ("tensorflow", "tf2onnx", "onnx", "onnxruntime", "ai-edge-litert", "openvino", "nncf", "numpy")


def tools() -> dict[str, str]:
    """Return the versions of the programs that an export uses, those that are installed."""
    found = {"moxserve": __version__}
    for name in _TOOLS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def report_of(job: JobOptions, model: StagedModel, made: MadeVariants) -> Report:
    """Describe an export that is done but for its publishing, whose version number is not known yet.

    Args:
        job: what was asked.
        model: what it was made of.
        made: the variants.
    """
    source = model.source
    details = {} if source.global_step is None else {"global_step": source.global_step}
    return Report(
        model_name=job.model_name,
        failure=made.failure,
        source=SourceFacts(kind=source.kind, path=source.checkpoint or source.path, details=details),
        signature=model.main,
        signatures={name: str(signature) for name, signature in model.signatures.items()},
        rows=made.rows,
        labels_known=model.labels is not None,
        calibration=made.calibration,
        transforms=made.steps,
        nodes=made.nodes,
        variants=made.reports,
        requirements=made.requirements,
        sparsity=made.sparsity,
        notes=(*model.notes, *made.notes),
        tools=tools(),
        options=_options(job, model),
        phases=made.phases,
    )


def _options(job: JobOptions, model: StagedModel) -> dict[str, Any]:
    """Return the options with their defaults filled in."""
    asked = job.variants
    return {
        **asdict(asked),
        "targets": [target.name for target in asked.targets],
        "signature": asked.signature or model.main,
        "transforms": DEFAULT_TRANSFORMS if asked.transforms is None else asked.transforms,
    }
