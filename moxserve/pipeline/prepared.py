"""A pipeline whose input, model and optimizer are built out of its file, or of the directory of an earlier run.

Nothing runs here. TensorFlow and the exporter are imported inside the functions that need them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moxserve import file
from moxserve.config.dump import config_hash
from moxserve.config.pipeline import LoadedPipeline, PipelineConfig, load_pipeline
from moxserve.errors import CheckpointError
from moxserve.file.filesystem import join
from moxserve.pipeline.slots import InputBundle, InputPlugin, ModelPlugin, OptimizerPlugin, RunPlugin
from moxserve.pipeline.stage import Talk, silent, stage
from moxserve.types import TensorSpec, dtype_of

if TYPE_CHECKING:
    from moxserve.export.job import ExportJob

__all__ = ["RESOLVED", "PreparedRun", "load_run", "plugins_of", "prepare"]

RESOLVED = "config.resolved.yaml"


@dataclass(frozen=True)
class PreparedRun:
    """A pipeline whose input, model and optimizer are built; nothing has run.

    Attributes:
        loaded: the file and what it says.
        data: the input.
        model_fn: as `mox.run` takes it.
        optimizer_fn: as `mox.run` takes it; None when there is no optimizer.
        log_dir: where the run's checkpoints are, or will be.
    """

    loaded: LoadedPipeline
    data: InputBundle
    model_fn: Callable[..., Any]
    optimizer_fn: Callable[..., Any] | None
    log_dir: str

    @property
    def config(self) -> PipelineConfig:
        """What the file says."""
        return self.loaded.config

    @property
    def input_fn(self) -> Callable[..., Any]:
        """The input's function."""
        return self.data.input_fn

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names by index."""
        return self.data.labels

    def export_job(
        self,
        base_dir: str | os.PathLike[str],
        checkpoint: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> ExportJob:
        """Describe the export of a checkpoint, with real rows to verify and warm up with.

        Args:
            base_dir: BASE of `BASE/<version>/`.
            checkpoint: prefix; None takes the newest of the run.
            metadata: added to what goes into the manifest.
            changes: fields of the export stage (see `ExportStage`) that are to differ from the file.

        Raises:
            UsageError: a change is no field, or has no right value.
            CheckpointError: there is no checkpoint.
            DataError: the input gives no rows.
        """
        from moxserve.export.job import ExportJob
        from moxserve.export.options import job_options, read_stage, sample_rows
        from moxserve.pipeline.steps import find_checkpoint

        base = os.fspath(base_dir)
        told = self.config.export.model_dump() if self.config.export is not None else {}
        options = read_stage({**told, **changes, "tf_serving": base})
        samples = self._samples(sample_rows(options))
        return ExportJob(
            model_fn=self.model_fn,
            inputs=[
                TensorSpec(name, dtype_of(rows), (None, *rows.shape[1:]))
                for name, rows in zip(self.data.names, samples, strict=True)
            ],
            checkpoint=checkpoint or find_checkpoint(self.log_dir),
            samples=samples,
            labels=self.data.labels,
            metadata={"pipeline": self.loaded.path, "config_sha256": config_hash(self.config), **(metadata or {})},
            **job_options(options),
        )

    def _samples(self, count: int) -> Sequence[Any]:
        from moxserve.tensorflow.executor.inputs import collect_samples

        # Without evaluation data the training rows still are real rows.
        mode = "EVAL" if self.data.num_samples.get("EVAL") else "TRAIN"
        self.data.steps(mode)
        samples: Sequence[Any] = collect_samples(
            self.data.input_fn, mode, self.data.rows_per_step(mode), self.data.auto_batch, count
        )
        return samples


def prepare(loaded: LoadedPipeline, log_dir: str | None = None, talk: Talk = silent) -> PreparedRun:
    """Build input, model and optimizer.

    Args:
        loaded: a valid pipeline.
        log_dir: where the run is; None takes the run stage's.
        talk: told what happens.

    Raises:
        ConfigError: a parameter does not go with the rest; with its place.
        MoxserveError: a plugin failed; the stage and the plugin are named.
    """
    config = loaded.config
    source, model, optimizer, run = plugins_of(config)
    with stage(loaded, "input", talk):
        data = source.build()
    with stage(loaded, "model", talk):
        model_fn = _compressed(model.build(data), config)
    optimizer_fn = None
    if optimizer is not None:
        with stage(loaded, "optimizer", talk):
            optimizer_fn = optimizer.build()
    return PreparedRun(loaded, data, model_fn, optimizer_fn, log_dir or run.log_dir)


def _compressed(model_fn: Callable[..., Any], config: PipelineConfig) -> Callable[..., Any]:
    """Have the model quantized and pruned as the file says."""
    if config.quantization is not None:
        from moxserve.tensorflow.quantization import Quantization, quantize_model_fn

        model_fn = quantize_model_fn(model_fn, Quantization(**config.quantization.model_dump()))
    if config.pruning is not None:
        from moxserve.tensorflow.pruning import Pruning, prune_model_fn

        model_fn = prune_model_fn(model_fn, Pruning(**config.pruning.model_dump()))
    return model_fn


def plugins_of(config: PipelineConfig) -> tuple[InputPlugin, ModelPlugin, OptimizerPlugin | None, RunPlugin]:
    """Return the plugins of input, model, optimizer and run, with the types that loading has checked."""
    source, model, optimizer, run = config.input, config.model, config.optimizer, config.run
    if (
        isinstance(source, InputPlugin)
        and isinstance(model, ModelPlugin)
        and isinstance(optimizer, OptimizerPlugin | None)
        and isinstance(run, RunPlugin)
    ):
        return source, model, optimizer, run
    raise TypeError("a plugin names a slot in its class but does not derive from that slot's base")


def load_run(run_dir: str | os.PathLike[str]) -> PreparedRun:
    """Build input and model of an earlier run from what it left in its directory.

    Args:
        run_dir: the run's log_dir, wherever it is now, a URL too. Its checkpoints are fetched when they are used.

    Raises:
        CheckpointError: the directory holds no run.
        DataError: the store cannot be read.
        ConfigError: what it holds is not valid any more (its data moved, a plugin changed).
    """
    folder = os.fspath(run_dir)
    path = join(folder, RESOLVED)
    if not file.exists(path) or file.is_directory(path):
        what = "holds no" if file.is_directory(folder) else "does not exist; expected a directory with a"
        raise CheckpointError(
            f"{folder!r} {what} {RESOLVED}", hint="give the log_dir of a finished `moxserve pipeline run`"
        )
    # What was resolved is literal: a `${` in it was meant as one.
    return prepare(load_pipeline(path, check=True, environment=None), log_dir=folder)
