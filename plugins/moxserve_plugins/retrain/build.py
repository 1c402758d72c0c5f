"""Retraining through `moxserve.tensorflow.transfer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moxserve.pipeline.slots import ParameterError, RunJob, RunReport

if TYPE_CHECKING:
    from moxserve_plugins.retrain.config import Retrain

__all__ = ["run"]


def run(config: Retrain, job: RunJob) -> RunReport:
    """Train the last layer, and evaluate the whole model if there are evaluation data."""
    import tensorflow as tf

    from moxserve.file.filesystem import is_remote
    from moxserve.pipeline.steps import evaluate
    from moxserve.tensorflow.transfer.distort import distorted
    from moxserve.tensorflow.transfer.retrain import retrain

    if hasattr(job.model_fn, "phases"):
        raise ParameterError("run.plugin", "retrain trains a float network: it goes with no quantization or pruning")
    if is_remote(config.bottlenecks):
        raise ParameterError("run.bottleneck_dir", "features are kept on this machine; give a folder of it")
    job.data.steps("TRAIN")
    arguments: dict[str, Any] = {"log_every_n_steps": config.log_every_n_steps}
    if config.save_model_steps is not None:
        arguments["save_model_steps"] = config.save_model_steps
    with tf.Graph().as_default() as graph:
        graph.seed = config.seed
        result = retrain(
            job.data.input_fn,
            job.model_fn,
            job.optimizer_fn,
            checkpoint_path=config.checkpoint_path,
            log_dir=job.log_dir,
            bottleneck_dir=config.bottlenecks,
            batch_size=job.data.batch_size,
            max_number_of_steps=config.max_number_of_steps,
            num_samples=job.data.num_samples["TRAIN"],
            auto_batch=job.data.auto_batch,
            head=config.head,
            distortions=distorted(**config.distortions.model_dump()) if config.distortions.any else None,
            save_summary_steps=config.save_summary_steps,
            **arguments,
        )
    metrics, rows = {}, job.data.num_samples.get("EVAL", 0)
    if rows:
        metrics = evaluate(job.data, job.model_fn, result.run.checkpoint, job.log_dir)
    return RunReport(checkpoint=result.run.checkpoint, train=result.run, metrics=metrics, rows=rows)
