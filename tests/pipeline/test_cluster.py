"""A pipeline in several processes, unchanged: all train, one does what follows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from moxserve.pipeline.runner import run_pipeline

Write = Callable[..., Path]
MORE = """
evaluate: {output: evaluation.json}
predict: {output: predictions.jsonl}
"""


@pytest.mark.slow
def test_a_process_that_does_not_lead_leaves_the_rest_to_the_chief(
    softmax: Write, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = softmax(("plugin: train,", "plugin: train_and_evaluate,"), more=MORE)
    monkeypatch.setenv("MOXSERVE_FLAGS", "--job_name=worker --worker_hosts=127.0.0.1:2222")
    chief = run_pipeline(path)
    assert (chief.role, chief.report.rows) == (None, 360)
    written = sorted(str(p) for p in work.rglob("*") if "eval" not in p.parts)
    told: list[str] = []
    monkeypatch.setenv("MOXSERVE_FLAGS", "--job_name=evaluator --worker_hosts=127.0.0.1:2222")
    # It may well find checkpoints, of the chief which is at work already.
    beside = run_pipeline(path, resume=False, talk=told.append)
    assert told[-1] == "run (train_and_evaluate)"
    assert (beside.role, beside.evaluate, beside.predictions) == ("evaluator 0", {}, None)
    assert beside.report.train is not None
    assert beside.report.train.metrics["accuracy"] == pytest.approx(chief.evaluate["accuracy"], abs=1e-6)
    assert beside.to_json()["role"] == "evaluator 0"
    assert sorted(str(p) for p in work.rglob("*") if "eval" not in p.parts) == written
    evaluations = json.loads((work / "run" / "eval" / "evaluations.json").read_text())["evaluations"]
    assert [evaluation["step"] for evaluation in evaluations] == [30]


@pytest.mark.slow
def test_a_stage_that_does_not_train_is_the_chiefs(softmax: Write, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = "run: {plugin: train, log_dir: run, max_number_of_steps: 30, log_every_n_steps: 10}"
    path = softmax((run, "run: {plugin: evaluate, log_dir: run, checkpoint_path: there-is-none}"))
    monkeypatch.setenv(
        "TF_CONFIG", json.dumps({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}})
    )
    result = run_pipeline(path)
    assert (result.role, result.report.train, result.report.rows) == ("worker 1", None, 0)
    assert not (work / "run").exists()
