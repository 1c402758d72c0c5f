"""What a pipeline would do."""

from __future__ import annotations

from collections.abc import Sequence

from moxserve import file
from moxserve.config.pipeline import LoadedPipeline
from moxserve.file.filesystem import join
from moxserve.pipeline.prepared import plugins_of
from moxserve.pipeline.stage import silent, stage

__all__ = ["has_checkpoint", "plan"]


def plan(loaded: LoadedPipeline) -> list[tuple[str, str, str]]:
    """Say what a run would do: stage, plugin and what, in order. Writes nothing, needs no TensorFlow."""
    config = loaded.config
    source, model, optimizer, run = plugins_of(config)
    with stage(loaded, "input", silent):
        lines = [("input", config.input.plugin, source.describe())]
    lines.append(("model", model.plugin, model.describe()))
    if optimizer is not None:
        lines.append(("optimizer", optimizer.plugin, optimizer.describe()))
    if config.quantization is not None:
        start = config.quantization.start_step
        told = f"int8 from step {start}" if start else "int8 from the first step"
        lines.append(("quantization", "", told + _without(config.quantization.exclude)))
    if config.pruning is not None:
        pruning = config.pruning
        told = f"{100 * pruning.sparsity:g} % of each kernel zero, from step {pruning.begin_step} to {pruning.end_step}"
        lines.append(("pruning", "", told + _without(pruning.exclude)))
    resumes = " (checkpoints there: it would resume)" if run.trains and has_checkpoint(run.log_dir) else ""
    lines.append(("run", config.run.plugin, run.describe() + resumes))
    if config.export is not None:
        from moxserve.export.publish import next_version

        where = config.export.tf_serving
        lines.append(("export", "", f"version {next_version(where)} of {config.export.model_name!r} in {where}"))
    if config.evaluate is not None:
        needs = "".join(f", {name} of at least {limit:g}" for name, limit in config.evaluate.require.items())
        lines.append(("evaluate", "", f"the whole evaluation data{needs}"))
    if config.predict is not None:
        lines.append(("predict", "", f"one line a row to {config.predict.output}"))
    return lines


def _without(exclude: Sequence[str]) -> str:
    return f", without {', '.join(exclude)}" if exclude else ""


def has_checkpoint(log_dir: str) -> bool:
    """Tell whether a training that starts there would go on from a checkpoint."""
    return file.exists(join(log_dir, "checkpoint"))
