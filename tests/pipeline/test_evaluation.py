"""Pipelines that evaluate in the middle of a training: what ends it, and which checkpoint later stages use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from moxserve.config import load_pipeline
from moxserve.errors import ConfigError
from moxserve.pipeline.plan import plan
from moxserve.pipeline.runner import run_pipeline

Write = Callable[..., Path]

EVALUATION = """\
run:
  plugin: train_and_evaluate
  log_dir: run
  max_number_of_steps: 3000
  seed: 3
  evaluation:
    every_n_epochs: 2
    early_stopping: {monitor: loss, patience: 2, min_delta: 0.05}
    keep_best: {monitor: accuracy, keep: 2}
"""


@pytest.fixture
def evaluated(softmax: Write) -> Callable[..., Path]:
    """The softmax, trained with an evaluation every other epoch (58 steps)."""

    def write(evaluation: str = EVALUATION) -> Path:
        path = softmax()
        lines = [line for line in path.read_text().splitlines() if not line.startswith("run:")]
        path.write_text("\n".join(lines) + "\n" + evaluation)
        return path

    return write


@pytest.mark.slow
def test_a_training_ends_early_and_its_best_checkpoint_goes_on(evaluated: Write, work: Path) -> None:
    result = run_pipeline(evaluated())
    train = result.report.train
    assert train is not None
    assert (train.stop_reason, train.global_step % 58) == ("request_stop", 0)
    assert train.checkpoint == f"run/model.ckpt-{train.global_step}"
    best = json.loads((work / "run/best/best.json").read_text())["checkpoints"]
    assert result.report.checkpoint == train.best == f"run/best/{best[0]['name']}"
    assert len(best) == 2
    # All 360 rows, also with another batch size of evaluations than of the training: the same as in the end.
    assert result.report.metrics["accuracy"] == pytest.approx(best[0]["values"]["accuracy"], rel=1e-6)
    assert result.report.metrics["loss"] == pytest.approx(best[0]["values"]["loss"], rel=1e-5)


def test_what_is_planned_and_what_is_wrong(evaluated: Write) -> None:
    told = {name: text for name, _, text in plan(load_pipeline(str(evaluated())))}
    assert told["run"] == "train at most to step 3000, checkpoints in run, then evaluate"
    for old, new, message in (
        ("patience: 2", "patience: 0", "patience"),
        ("keep: 2", "keeps: 2", "keep"),
        ("every_n_epochs: 2", "every_n_epochs: 0", "every_n_epochs"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_pipeline(str(evaluated(EVALUATION.replace(old, new))))


@pytest.mark.slow
def test_an_unknown_monitor_is_named(evaluated: Write) -> None:
    with pytest.raises(Exception, match=r"monitor='los'.*did you mean 'loss'"):
        run_pipeline(evaluated(EVALUATION.replace("monitor: loss", "monitor: los")))
