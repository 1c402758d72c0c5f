"""A pipeline whose run, artifact and predictions are in a bucket."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moxserve import file
from moxserve.cli.main import main
from moxserve.errors import CheckpointError, ConfigError, MoxserveError
from moxserve.export.exporter import export_version
from moxserve.export.manifest import read_manifest
from moxserve.pipeline.prepared import load_run
from moxserve.pipeline.runner import run_pipeline

Write = Callable[..., Path]


@pytest.mark.slow
def test_everything_goes_to_the_bucket_and_on_from_there(softmax: Write, store: Any, scratch: Path, work: Path) -> None:
    run, models = f"{store.base}/run", f"{store.base}/models"
    later = f"""\
export: {{tf_serving: "{models}"}}
evaluate: {{}}
predict: {{output: "{models} told/rows.jsonl"}}
"""
    path = softmax(("log_dir: run", f'log_dir: "{run}"'), more=later)
    first = run_pipeline(path)
    assert (first.log_dir, first.report.checkpoint) == (run, f"{run}/model.ckpt-30")
    assert first.export is not None
    assert first.export.path == f"{models}/1"
    there = file.list_directory(run, recursive=True, skip_dir=True)
    assert {"checkpoint", "model.ckpt-30.index", "config.resolved.yaml", "evaluation.json"} <= set(there)
    evaluation = json.loads(file.read(f"{run}/evaluation.json"))
    assert (evaluation["metrics"], evaluation["checkpoint"]) == (first.evaluate, f"{run}/model.ckpt-30")
    with file.local_copy(first.export.path) as version:
        assert read_manifest(version).source.checkpoint == f"{run}/model.ckpt-30"
    assert len(file.read(f"{models} told/rows.jsonl").splitlines()) == first.evaluated
    elsewhere = f"{store.base}/metrics.json"
    second = run_pipeline(path, ["run.max_number_of_steps=40", f"evaluate.output={elsewhere}"])
    assert json.loads(file.read(elsewhere))["checkpoint"] == f"{run}/model.ckpt-40"
    assert [found.name for found in work.iterdir() if found != scratch] == ["p.yaml"]  # nothing stays here
    assert second.report.train is not None
    assert (second.report.train.start_step, second.report.train.global_step) == (30, 40)
    with pytest.raises(CheckpointError, match="holds checkpoints of an earlier run"):
        run_pipeline(path, resume=False)
    job = load_run(run).export_job(models)
    exported = export_version(job)
    assert exported.path == f"{models}/3"
    with file.local_copy(exported.path) as version:
        source = read_manifest(version).source
    assert (source.checkpoint, source.global_step) == (f"{run}/model.ckpt-40", 40)
    with pytest.raises(SystemExit) as done:
        main(["export", f"{run}/", "--tf-serving", str(work / "here"), "--checkpoint", f"{run}/model.ckpt-30"])
    assert done.value.code in (None, 0)
    assert read_manifest(str(work / "here" / "1")).source.global_step == 30
    assert list(scratch.glob(f"{file.TEMP_PREFIX}*")) == []


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_told_before_the_training(softmax: Write, store: Any, work: Path) -> None:
    with pytest.raises(MoxserveError, match=r"export: s3://mistyped/m.*NoSuchBucket"):
        run_pipeline(softmax(more='export: {tf_serving: "s3://mistyped/m"}\n'))
    for name in ("evaluate", "predict"):
        with pytest.raises(MoxserveError, match=rf"{name}: s3://mistyped/m.*NoSuchBucket"):
            run_pipeline(softmax(more=f'{name}: {{output: "s3://mistyped/m"}}\n'))

    def forbid(method: str, path: str, _query: str) -> Any:
        denied = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
        return ("403 Forbidden", [], denied) if method in ("POST", "PUT") and "secret" in path else None

    store.before = forbid
    with pytest.raises(PermissionError, match=rf"predict: {store.base}/secret/rows.*AccessDenied"):
        run_pipeline(softmax(more=f'predict: {{output: "{store.base}/secret/rows"}}\n'))
    assert not (work / "run").exists()


def test_what_is_no_run_is_told_by_its_url(store: Any, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"{store.base}/run"
    with pytest.raises(CheckpointError, match=rf"'{url}' does not exist"):
        load_run(url)
    file.write(f"{url}/notes", "x")
    with pytest.raises(CheckpointError, match=rf"'{url}' holds no config.resolved.yaml"):
        load_run(url)
    for wrong, message in ((url, "holds no config.resolved.yaml"), (f"{url}/none", "there is no such file")):
        with pytest.raises(SystemExit) as failed:
            main(["export", wrong, "--tf-serving", "models"])
        assert failed.value.code == 2
        told = capsys.readouterr().err
        assert repr(wrong) in told
        assert message in told
    with pytest.raises(SystemExit):
        main(["pipeline", "validate", f"{url}/none.yaml"])
    assert f"{url}/none.yaml: there is no such object" in capsys.readouterr().err
    file.write(f"{url}/config.resolved.yaml", "version: 2")
    with pytest.raises(ConfigError, match=f"{url}/config.resolved.yaml"):
        load_run(url)
