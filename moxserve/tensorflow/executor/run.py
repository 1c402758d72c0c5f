"""`mox.run`: from arguments and flags to the runs of this process; see `one_run` for what happens in one.

A call is one run, or several: phases of a training, further attempts where other processes failed, the evaluations of
an evaluator. A parameter server has none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from moxserve.tensorflow.executor import job
from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.evaluator import evaluate_beside
from moxserve.tensorflow.executor.flags import store
from moxserve.tensorflow.executor.observe.logs import logged, process_name
from moxserve.tensorflow.executor.one_run import OneRun
from moxserve.tensorflow.executor.phases import phases_of, run_phases
from moxserve.tensorflow.executor.remote import kept_here
from moxserve.tensorflow.executor.settings import Functions, RunArguments, Settings
from moxserve.tensorflow.executor.spec import ModeKeys, RunResult
from moxserve.tensorflow.executor.workers import Part

__all__ = ["run"]


def run(
    input_fn: Callable[..., Any] | None = None,
    output_fn: Callable[..., Any] | None = None,
    model_fn: Callable[..., Any] | None = None,
    optimizer_fn: Any = None,
    run_mode: str = "invalid",
    inter_mode: str | None = None,
    batch_size: int | None = None,
    auto_batch: bool = True,
    log_dir: str | None = None,
    max_number_of_steps: int = 0,
    checkpoint_path: str | None = None,
    log_every_n_steps: int | None = None,
    output_every_n_steps: int = 0,
    save_summary_steps: int | None = None,
    save_model_secs: float | None = None,
    export_model: str | Sequence[str] | bool | None = False,
    fetch_strategy_fn: Callable[[int], bool] | None = None,
    save_model_steps: int | None = None,
    warm_start: Any = None,
) -> RunResult:
    """Train, evaluate or apply a model.

    Args:
        input_fn: `input_fn(mode, **kwargs)` returns one or several tensors, a `tf.data.Dataset`, a
            `moxserve.dataflow.DataFlow`, or one of `moxserve.tensorflow.input_source`.
        output_fn: `output_fn(outputs, **kwargs)` gets a list with one dict of arrays per step; needed in PREDICT.
        model_fn: `model_fn(inputs, mode, **kwargs)` returns a ModelSpec; `inputs` is always a list.
        optimizer_fn: `optimizer_fn()` returns an optimizer; or a list of such functions, one per loss. Needed in TRAIN.
        run_mode: `mox.ModeKeys.TRAIN`, EVAL or PREDICT.
        inter_mode: TRAIN: `input_fn` and `model_fn` are called again with this mode (EVAL, usually), for hooks that run
            it in the middle of training, `mox.LogEvaluationMetricHook` for one. It never changes a variable.
        batch_size: rows of a step; also counts the throughput when `auto_batch` is False.
        auto_batch: True: `input_fn` returns one sample, batches are made here. False: it returns batches.
        log_dir: folder of checkpoints and summaries, and the base folder of exported versions; None writes nothing.
        max_number_of_steps: TRAIN: global step to train to. EVAL, PREDICT: steps to make. 0: until the input ends.
        checkpoint_path: checkpoint, or folder of one, to start from when `log_dir` has none.
        log_every_n_steps: steps between console lines, default 10; 0 prints none.
        output_every_n_steps: how many steps make one call of `output_fn`; 0 in PREDICT: one call at the end.
        save_summary_steps: TRAIN: steps between summaries, default 100; 0 writes none.
        save_model_secs: TRAIN: seconds between checkpoints; wins over `save_model_steps`. Default 600 when neither
            is given.
        export_model: `mox.ExportKeys.TF_SERVING` exports the model at the end, into `log_dir/<version>`; a list such as
            `[mox.ExportKeys.ONNX, mox.ExportKeys.TFLITE_INT8]` makes these forms in the same version, too.
        fetch_strategy_fn: called with the index of each step of this run; True prints that step's console line.
            Replaces `log_every_n_steps`.
        save_model_steps: TRAIN: save when the global step is a multiple of this.
        warm_start: TRAIN: a `mox.WarmStart`, or path: variables of another model to begin with when `log_dir` has none.

    Returns:
        What was done, with metrics, checkpoint and timing.

    Raises:
        UsageError: an argument or flag is wrong.
        ModelSpecError: one of the functions broke its contract.
        CheckpointError: EVAL or PREDICT have no checkpoint, or a checkpoint does not fit.
        InterruptedRunError: SIGINT or SIGTERM came; the checkpoint is written, the hooks have ended.
    """
    arguments = RunArguments(
        run_mode=run_mode,
        inter_mode=inter_mode,
        batch_size=batch_size,
        auto_batch=auto_batch,
        log_dir=log_dir,
        max_number_of_steps=max_number_of_steps,
        checkpoint_path=checkpoint_path,
        log_every_n_steps=log_every_n_steps,
        output_every_n_steps=output_every_n_steps,
        save_summary_steps=save_summary_steps,
        save_model_secs=save_model_secs,
        export_model=export_model,
        save_model_steps=save_model_steps,
        warm_start=warm_start,
    )
    with (
        store.frozen(),
        logged(store.get("log_format"), process_name(store)) as told,
        contextlib.ExitStack() as stack,
    ):
        resolved = Settings.resolve(arguments, store)
        # Both functions are checked on the next line, so None never gets further.
        functions = Functions(input_fn, model_fn, optimizer_fn, output_fn, fetch_strategy_fn)  # type: ignore[arg-type]
        functions.check(resolved)
        topology = Topology.from_flags(store)
        settings = stack.enter_context(kept_here(resolved, topology, phased=bool(phases_of(model_fn))))
        if topology.job == "evaluator":
            return told(evaluate_beside(settings, functions, topology, lambda *run: OneRun(*run).execute()))
        with Part.taken(topology, training=settings.mode == ModeKeys.TRAIN) as part:
            served = job.without_training(settings, part)
            if served is not None:
                return told(served)
            whole, here = job.what_is_left(settings, part)

            def execute(of: Settings, using: Functions, phase: int) -> RunResult:
                part.phase, part.is_last = phase, of is whole
                number = part.run if part.is_last and here.is_chief else 0  # a phase before it is no end
                return part.persist(lambda: OneRun(of, using, here, number).execute())

            return told(run_phases(whole, functions, execute, here))
