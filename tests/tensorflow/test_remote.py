"""Training into a bucket, and on from it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve import file
from moxserve.errors import CheckpointError
from moxserve.tensorflow.executor import remote
from moxserve.tensorflow.executor.remote import Mirror

Train = Callable[..., mox.RunResult]


def names(url: str) -> list[str]:
    """Every file below a directory."""
    return file.list_directory(url, recursive=True, skip_dir=True)


@pytest.mark.slow
def test_a_training_into_a_bucket_leaves_what_one_into_a_folder_does(
    train: Train, store: Any, tmp_path: Path, scratch: Path
) -> None:
    url = f"{store.base}/run"
    here = train(log_dir=str(tmp_path / "run"), max_number_of_steps=6, save_model_steps=2, save_summary_steps=2)
    there = train(log_dir=url, max_number_of_steps=6, save_model_steps=2, save_summary_steps=2)
    assert there.checkpoint == f"{url}/model.ckpt-6"

    def kinds(found: list[str]) -> set[str]:
        return {name for name in found if "tfevents" not in name and not name.startswith(".")}

    assert kinds(names(url)) == kinds(names(str(tmp_path / "run")))
    assert sum("tfevents" in name for name in names(url)) == 1
    assert here.global_step == there.global_step == 6
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_it_goes_on_from_the_bucket_alone(train: Train, store: Any, variable: Any, tmp_path: Path) -> None:
    url = f"{store.base}/run"
    train(log_dir=url, max_number_of_steps=3)
    result = train(log_dir=url, max_number_of_steps=5)
    assert (result.start_step, result.global_step) == (3, 5)
    for steps in (3, 5):
        here = train(log_dir=str(tmp_path / "here"), max_number_of_steps=steps)
    with file.local_copy(url) as folder:
        np.testing.assert_allclose(
            variable(os.path.join(folder, "model.ckpt-5"), "w"), variable(here.checkpoint, "w"), rtol=1e-6
        )
    evaluated = train(run_mode=mox.ModeKeys.EVAL, log_dir=url, max_number_of_steps=2)
    assert evaluated.checkpoint == f"{url}/model.ckpt-5"
    assert any(name.startswith("eval/events") for name in names(url))


@pytest.mark.slow
def test_it_starts_from_a_checkpoint_in_a_bucket(train: Train, store: Any, tmp_path: Path) -> None:
    url = f"{store.base}/run"
    train(log_dir=url, max_number_of_steps=3)
    for path in (url, f"{url}/model.ckpt-3"):
        result = train(log_dir=str(tmp_path / path[-3:]), checkpoint_path=path, max_number_of_steps=4)
        assert result.start_step == 3
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        train(checkpoint_path=f"{url}/model.ckpt-7", max_number_of_steps=4)


def test_old_checkpoints_go_and_the_state_file_comes_last(store: Any, tmp_path: Path) -> None:
    url, folder = f"{store.base}/run", str(tmp_path / "here" / "run")
    mirror = Mirror(url, folder)

    def checkpoint(step: int) -> None:
        for part in ("index", "data-00000-of-00001"):
            Path(folder, f"model.ckpt-{step}.{part}").write_text(f"{step}")
        Path(folder, "checkpoint").write_text(f'model_checkpoint_path: "model.ckpt-{step}"')
        with mirror.snapshot() as frozen:
            mirror.send(frozen)

    checkpoint(1)
    first = [path.rpartition("/")[2] for method, path in store.calls if method == "PUT"]
    assert first[-1] == "checkpoint"
    for part in ("index", "data-00000-of-00001"):
        Path(folder, f"model.ckpt-1.{part}").unlink()
    store.calls.clear()
    checkpoint(2)
    assert [method for method, path in store.calls if path.endswith("/checkpoint")] == ["PUT"]
    assert names(url) == ["checkpoint", "model.ckpt-2.data-00000-of-00001", "model.ckpt-2.index"]
    store.calls.clear()
    with mirror.snapshot() as frozen:
        mirror.send(frozen)
    assert store.calls == []


@pytest.mark.slow
def test_a_store_that_is_away_for_a_while_does_not_end_the_training(
    train: Train, store: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote, "_EVERY_S", 0.0)
    url, sent, send = f"{store.base}/run", [], Mirror.send

    def failing(self: Mirror, frozen: str) -> None:
        sent.append(frozen)
        if len(sent) == 1:
            raise OSError("no route to host")
        send(self, frozen)

    monkeypatch.setattr(Mirror, "send", failing)
    train(log_dir=url, max_number_of_steps=40, save_model_steps=5)
    assert "is not up to date: no route to host; trying again" in caplog.text
    assert f"{url}/model.ckpt-40.index" in {f"{url}/{name}" for name in names(url)}
    monkeypatch.setattr(Mirror, "send", lambda self, frozen: (_ for _ in ()).throw(OSError("disk quota")))
    with pytest.raises(CheckpointError, match=r"log_dir 's3://.*' cannot be written: disk quota"):
        train(log_dir=url, max_number_of_steps=50)


@pytest.mark.slow
def test_a_killed_training_goes_on_from_the_bucket(store: Any, tmp_path: Path, scratch: Path, train: Train) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        """
import sys, time
import tensorflow.compat.v1 as tf
import moxserve.tensorflow as mox

def input_fn(mode, **kwargs):
    return tf.random_uniform([4], seed=1)

def model_fn(inputs, mode, **kwargs):
    w = tf.get_variable("w", [4])
    loss = tf.reduce_mean(tf.square(inputs[0] - w))
    slow = tf.py_func(lambda x: (time.sleep(0.02), x)[1], [loss], tf.float32)
    return mox.ModelSpec(loss=loss, log_info={"loss": slow})

result = mox.run(input_fn, None, model_fn, mox.get_optimizer_fn("sgd", 0.1), mox.ModeKeys.TRAIN, batch_size=2,
                 log_dir=sys.argv[1], max_number_of_steps=int(sys.argv[2]), save_model_steps=5, log_every_n_steps=1)
print("from", result.start_step, "to", result.global_step)
"""
    )
    url = f"{store.base}/run"
    process = subprocess.Popen([sys.executable, str(script), url, "100000"], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 90
        while time.monotonic() < end and not file.exists(f"{url}/checkpoint"):
            time.sleep(0.1)
        time.sleep(0.5)
    finally:
        process.kill()
        process.wait()
    state = file.read(f"{url}/checkpoint")
    step = int(state.split('"')[1].rpartition("-")[2])
    assert file.exists(f"{url}/model.ckpt-{step}.index")
    done = subprocess.run(
        [sys.executable, str(script), url, str(step + 3)], capture_output=True, text=True, timeout=120, check=True
    )
    assert f"from {step} to {step + 3}" in done.stdout
    assert list(scratch.iterdir()) == []
