"""Runs a pipeline: input -> model -> optimizer -> run, then export, evaluate, predict.

TensorFlow, executor and exporter are imported inside the functions that need them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from moxserve.config.dump import to_data, to_yaml
from moxserve.config.models import EvaluateStage
from moxserve.config.pipeline import LoadedPipeline, load_pipeline
from moxserve.errors import CheckpointError, ConfigError, LimitExceededError
from moxserve.file import atomic_write
from moxserve.file.filesystem import is_remote
from moxserve.file.standins import known_as
from moxserve.file.writable import require_writable
from moxserve.pipeline.plan import has_checkpoint
from moxserve.pipeline.prepared import RESOLVED, PreparedRun, plugins_of, prepare
from moxserve.pipeline.slots import InputBundle, RunJob, RunPlugin, RunReport
from moxserve.pipeline.stage import Talk, silent, stage

if TYPE_CHECKING:
    from moxserve.export.job import ExportResult

__all__ = ["PipelineResult", "run_pipeline"]

EVALUATION = "evaluation.json"
# What tells a process that it is one of several.
_CLUSTER = ("MOXSERVE_FLAGS", "TF_CONFIG")


@dataclass(frozen=True)
class PipelineResult:
    """What a pipeline came to.

    Attributes:
        path: the file.
        log_dir: the run's directory.
        report: of the run stage.
        evaluate: metrics of the last evaluation over all rows; empty when there was none.
        evaluated: how many rows that were.
        export: the artifact, if any.
        predictions: file and number of rows of the predictions, if any.
        seconds: wall time by stage.
        role: of this process in a cluster, such as `worker 1`, where another one does what follows the training.
    """

    path: str
    log_dir: str
    report: RunReport
    evaluate: Mapping[str, float] = field(default_factory=dict)
    evaluated: int = 0
    export: ExportResult | None = None
    predictions: tuple[str, int] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    role: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON values, for `--json`."""
        train, export = self.report.train, self.export
        facts: dict[str, Any] = {"pipeline": self.path, "log_dir": self.log_dir, "checkpoint": self.report.checkpoint}
        if self.role is not None:
            facts["role"] = self.role
        if train is not None:
            facts["train"] = {
                "start_step": train.start_step,
                "global_step": train.global_step,
                "stop_reason": train.stop_reason,
                "samples_per_s": train.samples_per_s,
                "metrics": dict(train.metrics),
            }
        if self.evaluate:
            facts["evaluate"] = {**self.evaluate, "rows": self.evaluated}
        if export is not None:
            facts["export"] = {
                "path": export.path,
                "version": export.version,
                "signatures": {name: str(signature) for name, signature in export.signatures.items()},
                "max_abs_error": export.max_abs_error,
                "warmup_records": export.warmup_records,
                "size_bytes": export.size_bytes,
                "seconds": export.seconds,
                "notes": list(export.notes),
            }
            if export.report is not None:
                facts["export"]["variants"] = [v.model_dump(mode="json") for v in export.report.variants]
        if self.predictions is not None:
            facts["predict"] = {"output": self.predictions[0], "rows": self.predictions[1]}
        return {**facts, "seconds": dict(self.seconds)}


@contextlib.contextmanager
def _here(run: RunPlugin) -> Iterator[str]:
    """Give the local folder that stands for a run's log_dir in a store; of a local one the folder itself."""
    if not is_remote(run.log_dir):
        yield run.log_dir
        return
    from moxserve.tensorflow.executor.cluster import Topology
    from moxserve.tensorflow.executor.flags import store
    from moxserve.tensorflow.executor.remote import Share, mirrored

    topology = Topology.from_flags(store)
    share = Share.of(topology, training=run.trains, phased=True)  # perhaps: there is no model yet
    # A run that trains nothing leaves the file of the one that did alone.
    with mirrored(run.log_dir, share, topology.index, also=(RESOLVED,) if share is Share.READS else ()) as folder:
        yield folder


def _shown(path: str | None, log_dir: str) -> str | None:
    """Return the URL of a path in the folder that stands for a log_dir in a store."""
    return path if path is None or not is_remote(log_dir) else known_as(path)


def run_pipeline(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    resume: bool = True,
    talk: Talk = silent,
) -> PipelineResult:
    """Run a pipeline file from input to its last stage.

    Args:
        path: the YAML file.
        overrides: `KEY=VALUE` texts, as after `--set`.
        resume: go on from a checkpoint in log_dir; False refuses to start where there is one.
        talk: told in one line what happens.

    Raises:
        ConfigError: the file is wrong; every problem with its place. Nothing was written.
        CheckpointError: `resume` is False and log_dir holds checkpoints.
        LimitExceededError: a metric is below what `evaluate.require` asks for.
        MoxserveError: a stage failed; the stage and its plugin are named.
    """
    loaded = load_pipeline(path, overrides, check=True)
    _, _, _, run = plugins_of(loaded.config)
    if not resume and run.trains and has_checkpoint(run.log_dir) and _follower() is None:
        raise CheckpointError(
            f"{run.log_dir!r} holds checkpoints of an earlier run",
            hint="leave --no-resume out to go on from them, or choose another place with --set run.log_dir=DIR",
        )
    return _Stages(loaded, talk).run()


def _follower() -> str | None:
    """Return what this process is in a cluster, `worker 1`; None for a single process, and for the chief.

    A follower takes part in the training and is done with it: one process evaluates, exports and predicts.
    """
    if not any(os.environ.get(name) for name in _CLUSTER) and not any("job_name" in word for word in sys.argv):
        return None  # known without TensorFlow
    from moxserve.tensorflow.executor.cluster import Topology
    from moxserve.tensorflow.executor.flags import store

    topology = Topology.from_flags(store)
    return None if topology.is_chief else f"{topology.job} {topology.index}"


class _Stages:
    """Runs the stages of one pipeline in order."""

    def __init__(self, loaded: LoadedPipeline, talk: Talk) -> None:
        self._loaded = loaded
        self._config = loaded.config
        self._talk = talk
        self._seconds: dict[str, float] = {}

    def run(self) -> PipelineResult:
        run = plugins_of(self._config)[3]
        with _here(run) as folder:
            result = self._run_in(folder)
            report = replace(result.report, checkpoint=_shown(result.report.checkpoint, run.log_dir))
        return replace(result, log_dir=run.log_dir, report=report)

    def _run_in(self, folder: str) -> PipelineResult:
        prepared = self._timed("prepare", lambda: prepare(self._loaded, folder, talk=self._talk))
        role = _follower()
        if role is not None:
            return self._follow(prepared, role)
        self._find_stores()
        report = self._stage("run", prepared.data, lambda: self._run(prepared))
        export, metrics, predictions = None, dict(report.metrics), None
        if self._config.export is not None:
            export = self._stage("export", prepared.data, lambda: self._export(prepared, report))
        if self._config.evaluate is not None:
            evaluation = self._config.evaluate
            metrics = self._stage("evaluate", prepared.data, lambda: self._evaluate(evaluation, prepared, report))
        if self._config.predict is not None:
            output = self._config.predict.output
            rows = self._stage("predict", prepared.data, lambda: self._predict(output, prepared, report))
            predictions = (output, rows)
        return PipelineResult(
            path=self._loaded.path,
            log_dir=prepared.log_dir,
            report=report,
            evaluate=metrics,
            evaluated=prepared.data.num_samples.get("EVAL", 0) if metrics else 0,
            export=export,
            predictions=predictions,
            seconds=dict(self._seconds),
        )

    def _find_stores(self) -> None:
        """See whether the stores take what later stages write, before a training that may take days."""
        export, evaluation, prediction = self._config.export, self._config.evaluate, self._config.predict
        if export is not None and is_remote(export.tf_serving):
            from moxserve.export.publish import next_version

            with stage(self._loaded, "export", silent):
                next_version(export.tf_serving)
        outputs = {
            "evaluate": evaluation.output if evaluation is not None else None,
            "predict": prediction.output if prediction is not None else None,
        }
        for name, output in outputs.items():
            if output and is_remote(output):
                with stage(self._loaded, name, silent):
                    require_writable(output)

    def _follow(self, prepared: PreparedRun, role: str) -> PipelineResult:
        """Train along; everything else is the chief's."""
        run, report = plugins_of(self._config)[3], RunReport(None)
        if run.trains:
            job = RunJob(prepared.data, prepared.model_fn, prepared.optimizer_fn, prepared.log_dir, leads=False)
            report = self._stage("run", prepared.data, lambda: run.run(job))
        return PipelineResult(self._loaded.path, prepared.log_dir, report, seconds=dict(self._seconds), role=role)

    def _stage(self, name: str, data: InputBundle, work: Callable[[], Any]) -> Any:
        with stage(self._loaded, name, self._talk, data.diagnose):
            return self._timed(name, work)

    def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        start = time.monotonic()
        result = work()
        self._seconds[name] = time.monotonic() - start
        return result

    def _keep_config(self, run: RunPlugin, folder: str) -> None:
        """Leave what was resolved beside the checkpoints. A run that trains nothing does not touch another's."""
        target = os.path.join(folder, RESOLVED)
        if run.trains or not os.path.exists(target):
            os.makedirs(folder, exist_ok=True)
            # The plugins must be found again wherever the run directory is read from.
            folders = [folder for folder in self._loaded.folders if os.path.isdir(folder)]
            text = to_yaml(to_data(self._config, absolute=True, folders=folders)).replace("${", "$${")
            head = (
                f"# Resolved from {self._loaded.path}: defaults, variables and overrides filled in, paths absolute.\n"
            )
            atomic_write(target, head + text)

    def _run(self, prepared: PreparedRun) -> RunReport:
        run = plugins_of(self._config)[3]
        self._keep_config(run, prepared.log_dir)
        return run.run(RunJob(prepared.data, prepared.model_fn, prepared.optimizer_fn, prepared.log_dir))

    def _checkpoint(self, report: RunReport) -> str:
        if report.checkpoint is None:
            raise CheckpointError("the run left no checkpoint to go on with")
        return report.checkpoint

    def _export(self, prepared: PreparedRun, report: RunReport) -> ExportResult:
        from moxserve.export.exporter import export_version

        if self._config.export is None:
            raise ConfigError([self._loaded.problem("export", "missing")])
        metadata: dict[str, Any] = {"metrics": dict(report.metrics)}
        if report.train is not None:
            metadata["global_step"] = report.train.global_step
        job = prepared.export_job(self._config.export.tf_serving, self._checkpoint(report), metadata)
        result = export_version(job, self._talk)
        if result.served_s is not None:
            self._talk(f"served by {job.push} after {result.served_s:.1f} s")
        return result

    def _evaluate(self, config: EvaluateStage, prepared: PreparedRun, report: RunReport) -> dict[str, float]:
        import orjson

        from moxserve.pipeline.steps import evaluate, open_output

        checkpoint = self._checkpoint(report)
        metrics = evaluate(prepared.data, prepared.model_fn, checkpoint, prepared.log_dir)
        output = config.output or os.path.join(prepared.log_dir, EVALUATION)
        shown = _shown(checkpoint, plugins_of(self._config)[3].log_dir)
        facts = {"checkpoint": shown, "rows": prepared.data.num_samples["EVAL"], "metrics": metrics}
        with open_output(output) as f:
            f.write(orjson.dumps(facts, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        self._check_limits(config.require, metrics)
        return metrics

    def _check_limits(self, require: Mapping[str, float], metrics: Mapping[str, float]) -> None:
        for name, limit in require.items():
            if name not in metrics:
                known = ", ".join(sorted(metrics))
                problem = self._loaded.problem(
                    f"evaluate.require.{name}", f"the model reports no {name!r}; it has {known}"
                )
                raise ConfigError([problem])
            if not metrics[name] >= limit:
                raise LimitExceededError(f"{name} is {metrics[name]:.6g}, evaluate.require asks for at least {limit:g}")

    def _predict(self, output: str, prepared: PreparedRun, report: RunReport) -> int:
        from moxserve.pipeline.steps import predict

        return predict(prepared.data, prepared.model_fn, self._checkpoint(report), output, prepared.log_dir)
