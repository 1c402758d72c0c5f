"""A process that is started again when the job's training is over: it does what is left, and waits for nobody."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import moxserve.tensorflow as mox
from moxserve.tensorflow.executor import job
from moxserve.tensorflow.executor.workers import Part

Train = Callable[..., mox.RunResult]


@pytest.fixture
def ended(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log_dir of a training that ended before its last step, the first one of the job `a`."""
    train(log_dir=str(tmp_path), max_number_of_steps=5)
    (tmp_path / ".moxserve-job").write_text(json.dumps({"job": "a", "ended": [1]}))
    monkeypatch.setattr(Part, "_runs", 0)
    monkeypatch.setenv(job.JOB_VARIABLE, "a")
    mox.set_flag("ps_hosts", "127.0.0.1:1")  # nobody is there
    mox.set_flag("worker_hosts", "127.0.0.1:2,127.0.0.1:3")
    return tmp_path


@pytest.mark.parametrize(("name", "index"), [("worker", 1), ("ps", 0)])
def test_a_worker_and_a_parameter_server_have_nothing_to_do(train: Train, ended: Path, name: str, index: int) -> None:
    mox.set_flag("job_name", name)
    mox.set_flag("task_index", index)
    result = train(log_dir=str(ended), max_number_of_steps=100)
    assert (result.stop_reason, result.global_step, result.local_steps) == ("already_trained", 5, 0)
    assert result.checkpoint == str(ended / "model.ckpt-5")


def test_the_chief_does_what_follows(train: Train, ended: Path, linear: Any) -> None:
    mox.set_flag("job_name", "worker")
    result = train(log_dir=str(ended), max_number_of_steps=100, export_model=mox.ExportKeys.TF_SERVING)
    assert (result.stop_reason, result.global_step) == ("already_trained", 5)
    assert (ended / "1" / "saved_model.pb").is_file()


@pytest.mark.parametrize("known", ['{"job": "b", "ended": [1]}', '{"job": "a", "ended": [2]}', "{", "[]"])
def test_another_training_is_not_over(known: str, train: Train, ended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (ended / ".moxserve-job").write_text(known)
    seen = []
    monkeypatch.setattr(job, "serve", lambda part, mode: seen.append(part.run))
    mox.set_flag("job_name", "ps")
    train(log_dir=str(ended))
    assert seen == [1]


def test_only_the_end_of_a_whole_training_of_a_job_is_noted(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = []
    monkeypatch.setattr(job, "note_end", lambda settings, run: noted.append(run))
    train(log_dir=str(tmp_path))
    assert noted == [0]  # a single process


def test_notes_of_a_job_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moxserve.tensorflow.executor.flags import store
    from moxserve.tensorflow.executor.settings import RunArguments, Settings

    names = RunArguments.__dataclass_fields__
    given = {name: None for name in names} | {
        "run_mode": "TRAIN",
        "batch_size": 1,
        "auto_batch": True,
        "log_dir": str(tmp_path),
    }
    settings = Settings.resolve(RunArguments(**given), store)
    job.note_end(settings, 1)
    assert not (tmp_path / ".moxserve-job").exists()  # it has no name
    monkeypatch.setenv(job.JOB_VARIABLE, "a")
    job.note_end(settings, 0)
    assert not job.has_ended(settings, 0)
    job.note_end(settings, 1)
    job.note_end(settings, 2)
    assert [job.has_ended(settings, run) for run in (1, 2, 3)] == [True, True, False]
    monkeypatch.setenv(job.JOB_VARIABLE, "b")
    assert not job.has_ended(settings, 1)
    job.note_end(settings, 2)
    assert [job.has_ended(settings, run) for run in (1, 2)] == [False, True]
    (tmp_path / "file").touch()
    nowhere = Settings.resolve(RunArguments(**given | {"log_dir": str(tmp_path / "file" / "run")}), store)
    assert not job.has_ended(nowhere, 1)  # what is wrong with it, the training says
