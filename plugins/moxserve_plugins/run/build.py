"""Training through `mox.run`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moxserve.pipeline.slots import RunJob
from moxserve_plugins.run.config import FLAGS, PATTERNS

if TYPE_CHECKING:
    from moxserve.tensorflow.executor.spec import RunResult
    from moxserve_plugins.run.config import Train

__all__ = ["train"]


def train(config: Train, job: RunJob) -> RunResult:
    """Train to the last step, from log_dir's newest checkpoint if there is one."""
    import tensorflow as tf

    import moxserve.tensorflow as mox

    job.data.steps("TRAIN")
    model_fn, inter_mode = job.model_fn, None
    if config.evaluation is not None:
        job.data.steps("EVAL")
        model_fn, inter_mode = config.evaluation.around(model_fn, job.data), mox.ModeKeys.EVAL
    # mox.run tells "not given" from None; a schedule that is not asked for is left to its defaults.
    schedule: dict[str, Any] = {
        name: value
        for name, value in (("save_model_steps", config.save_model_steps), ("save_model_secs", config.save_model_secs))
        if value is not None
    }
    with _flags(config), tf.Graph().as_default() as graph:
        graph.seed = config.seed  # the run's own graph takes it over
        result: RunResult = mox.run(
            input_fn=job.data.input_fn,
            model_fn=model_fn,
            optimizer_fn=job.optimizer_fn,
            run_mode=mox.ModeKeys.TRAIN,
            inter_mode=inter_mode,
            batch_size=job.data.batch_size,
            auto_batch=job.data.auto_batch,
            log_dir=job.log_dir,
            max_number_of_steps=config.max_number_of_steps,
            checkpoint_path=config.checkpoint_path,
            log_every_n_steps=config.log_every_n_steps,
            save_summary_steps=config.save_summary_steps,
            warm_start=_warm_start(config),
            **schedule,
        )
    return result


def _warm_start(config: Train) -> Any:
    from moxserve.tensorflow import VocabularyChange, WarmStart

    if config.warm_start is None:
        return None
    given = config.warm_start
    changes = {name: VocabularyChange(**change.model_dump()) for name, change in given.vocabularies.items()}
    return WarmStart(given.checkpoint, given.variables, given.exclude, given.renamed, changes)


@contextmanager
def _flags(config: Train) -> Iterator[None]:
    """Set the flags that are given, for this training only."""
    from moxserve.tensorflow import get_flag, set_flag

    given = {name: ",".join(getattr(config, name)) for name in PATTERNS if getattr(config, name)}
    given |= {name: getattr(config, name) for name in FLAGS if getattr(config, name) is not None}
    before = {name: get_flag(name) for name in given}
    try:
        for name, value in given.items():
            set_flag(name, value)
        yield
    finally:
        for name, value in before.items():
            set_flag(name, value)
