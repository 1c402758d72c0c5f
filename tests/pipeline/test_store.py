"""A pipeline whose run, artifact and predictions are in a bucket."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moxserve import file
from moxserve.errors import CheckpointError
from moxserve.pipeline.runner import load_run, run_pipeline

Write = Callable[..., Path]


@pytest.mark.slow
def test_everything_goes_to_the_bucket_and_on_from_there(softmax: Write, store: Any, scratch: Path, work: Path) -> None:
    run, models = f"{store.base}/run", f"{store.base}/models"
    later = f"""\
export: {{tf_serving: "{models}"}}
evaluate: {{}}
predict: {{output: predictions.jsonl}}
"""
    path = softmax(("log_dir: run", f'log_dir: "{run}"'), more=later)
    first = run_pipeline(path)
    assert first.log_dir == run
    assert first.export is not None
    assert first.export.path == f"{models}/1"
    there = file.list_directory(run, recursive=True, skip_dir=True)
    assert {"checkpoint", "model.ckpt-30.index", "config.resolved.yaml", "evaluation.json"} <= set(there)
    assert json.loads(file.read(f"{run}/evaluation.json"))["metrics"] == first.evaluate
    assert len((work / "predictions.jsonl").read_text().splitlines()) == first.evaluated
    assert not (work / "run").exists()
    second = run_pipeline(path, ["run.max_number_of_steps=40"])
    assert second.report.train is not None
    assert (second.report.train.start_step, second.report.train.global_step) == (30, 40)
    with pytest.raises(CheckpointError, match="holds checkpoints of an earlier run"):
        run_pipeline(path, resume=False)
    with pytest.raises(CheckpointError, match="is in a store"):
        load_run(run)
    assert list(scratch.glob(f"{file.TEMP_PREFIX}*")) == []
