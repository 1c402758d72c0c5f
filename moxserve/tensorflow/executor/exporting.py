"""The export at the end of a run: from `export_model` and the run's checkpoint to the exporter's job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moxserve.errors import CheckpointError
from moxserve.tensorflow.executor.settings import Settings
from moxserve.tensorflow.executor.spec import ExportKeys
from moxserve.types import TensorSpec

__all__ = ["export_run", "sample_rows"]

_ROWS = 32
# Variants are judged by them, and int8 is calibrated with a part.
_ROWS_FOR_VARIANTS = 384


def sample_rows(settings: Settings) -> int:
    """Return how many real rows a run keeps for its export."""
    return _ROWS if settings.export == (ExportKeys.TF_SERVING,) else _ROWS_FOR_VARIANTS


def export_run(
    settings: Settings, model_fn: Any, inputs: Sequence[TensorSpec], checkpoint: str | None, samples: Sequence[Any]
) -> Any:
    """Export the checkpoint that a run ended with into its `log_dir`.

    Args:
        settings: of the run.
        model_fn: the user's.
        inputs: of model_fn, in order.
        checkpoint: prefix; None when the run wrote none.
        samples: real rows, one array for each input; may be empty.

    Returns:
        An ExportResult.

    Raises:
        CheckpointError: there is no checkpoint.
        ExportError: it cannot be exported; nothing was published.
    """
    from moxserve.export.exporter import export_version
    from moxserve.export.job import ExportJob
    from moxserve.export.op_libraries import loaded_op_libraries
    from moxserve.export.targets import VariantOptions, targets_by_name

    if checkpoint is None:
        raise CheckpointError("there is no checkpoint to export", hint="give log_dir, so that the run writes one")
    known = {name.upper(): target for name, target in targets_by_name().items()}
    targets = tuple(known[kind] for kind in settings.export if kind != ExportKeys.TF_SERVING)
    job = ExportJob(
        model_fn=model_fn,
        inputs=inputs,
        checkpoint=checkpoint,
        base_dir=str(settings.base_dir),
        samples=samples,
        variants=VariantOptions(targets=targets),
        op_libraries=loaded_op_libraries(),
    )
    return export_version(job)
