"""Training into a bucket, and on from it."""

from __future__ import annotations

import errno
import os
import signal
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
from moxserve.errors import CheckpointError, DataError, InterruptedRunError, UsageError
from moxserve.tensorflow.executor import one_run, remote
from moxserve.tensorflow.executor.mirror import Mirror

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
def test_it_starts_from_a_checkpoint_in_a_bucket(train: Train, store: Any, tmp_path: Path, console: Any) -> None:
    url = f"{store.base}/run"
    train(log_dir=url, max_number_of_steps=3)
    assert train(log_dir=url, max_number_of_steps=3).stop_reason == "already_trained"
    assert f"Nothing to train: checkpoint {url}/model.ckpt-3 is at step 3" in console.text
    for path in (url, f"{url}/model.ckpt-3", f"{url}/model.ckpt-3.index"):
        result = train(log_dir=str(tmp_path / path[-5:]), checkpoint_path=path, max_number_of_steps=4)
        assert result.start_step == 3
    evaluated = train(run_mode=mox.ModeKeys.EVAL, checkpoint_path=url, max_number_of_steps=1)
    assert evaluated.checkpoint == f"{url}/model.ckpt-3"
    with file.local_copy(url) as here:  # as it is of folders
        for base in (url, here):
            with pytest.raises(CheckpointError, match=rf"warm_start: no checkpoint at '{base}/model.ckpt-7'"):
                train(warm_start=f"{base}/model.ckpt-7", max_number_of_steps=4)


@pytest.mark.slow
def test_a_training_begins_without_a_checkpoint_anywhere(
    train: Train, store: Any, tmp_path: Path, console: Any
) -> None:
    store.write("team/digits/other/notes.txt")
    (tmp_path / "other").mkdir()
    places = (store.base, "s3://mistyped", tmp_path)
    for path in [f"{base}/{name}" for base in places for name in ("", "other", "nowhere", "nowhere/model.ckpt-7")]:
        result = train(checkpoint_path=path, max_number_of_steps=1)
        assert result.start_step == 0
        assert f"no checkpoint in checkpoint_path='{path.rstrip('/')}" in console.text
        with pytest.raises(
            CheckpointError, match=rf"EVAL needs a checkpoint; found none: checkpoint_path='{path[:-1]}"
        ):
            train(run_mode=mox.ModeKeys.EVAL, checkpoint_path=path, max_number_of_steps=1)
    store.before = lambda _method, path, query: ("403 Forbidden", [], b"") if "denied" in path + query else None
    with pytest.raises(PermissionError, match=f"{store.base}/denied"):
        train(checkpoint_path=f"{store.base}/denied", max_number_of_steps=1)


def test_of_a_bucket_only_what_a_training_leaves_is_fetched(store: Any, tmp_path: Path) -> None:
    state = {"checkpoint", ".moxserve-job", "hooks.json", "input-0.json", "input-11-skipped.jsonl"}
    parts = {f"model.ckpt-{step}.{part}" for step in (2, 4) for part in ("index", "meta", "data-00000-of-00002")}
    state |= parts | {"old.ckpt", "export", "best/checkpoint", "best/best.json"} | {f"best/{part}" for part in parts}
    others = [
        "movie.mp4",
        "input.json",
        "input-0.json.gz",
        "best/photo.jpg",
        "best/ckpt/x.ckpt",
        "data/model.ckpt-9.index",
    ]
    events = ["events.out.tfevents.1.host", "eval/events.out.tfevents.1.host", ".moxserve-claim", ".moxserve-training"]
    for name in (*state, *others, *events):
        store.write(name)
    store.write("checkpoint", b'model_checkpoint_path: "model.ckpt-4"\nall_model_checkpoint_paths: "export"')
    store.calls.clear()
    mirror = Mirror(f"s3://{store.bucket}", str(tmp_path / "here" / "run"))
    mirror.fetch()
    assert set(names(mirror.folder)) == state
    listings = [path for _, path in store.calls if path.rstrip("/") == f"/{store.bucket}"]
    assert len(listings) == 2  # of the root, and of best/: however much there is below
    with mirror.snapshot() as frozen:
        mirror.send(frozen)
    assert {*state, *others, *events} == set(store.listed())


@pytest.mark.slow
def test_the_root_of_a_bucket_is_a_log_dir(train: Train, linear: Any, store: Any) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = linear.model_fn(inputs, mode)
        settings = {"batch_size": 10, "samples_in_train": 10, "samples_in_eval": 10}
        spec.hooks.append(mox.BestCheckpointHook({"loss": spec.losses[0]}, "loss", mode="min", **settings))
        return spec

    url = f"s3://{store.bucket}"
    for name in ("photos.zip", "data/a.jpg"):
        store.write(name)
    first = train(log_dir=url, model_fn=model_fn, max_number_of_steps=2, inter_mode=mox.ModeKeys.EVAL)
    left = {name for name in store.listed() if "tfevents" not in name} - {"photos.zip", "data/a.jpg"}
    store.calls.clear()
    second = train(log_dir=f"{url}/", model_fn=model_fn, max_number_of_steps=3, inter_mode=mox.ModeKeys.EVAL)
    assert (first.global_step, second.start_step, second.global_step) == (2, 2, 3)
    got = {path.partition(f"/{store.bucket}/")[2] for method, path in store.calls if method == "GET"} - {""}
    assert got - {".moxserve-claim"} == left - {".moxserve-training"}
    assert {"photos.zip", "data/a.jpg"} <= set(store.listed())


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


def test_the_state_file_of_a_folder_comes_after_its_checkpoints_and_what_was_sent_counts(
    store: Any, tmp_path: Path
) -> None:
    mirror = Mirror(f"{store.base}/run", str(tmp_path / "here" / "run"))
    Path(mirror.folder, "best").mkdir()
    for name in ("best/checkpoint", "best/model.ckpt-1.index", "checkpoint", "model.ckpt-1.index"):
        Path(mirror.folder, name).write_text(name)
    refused = [("403 Forbidden", [("Content-Type", "application/xml")], b"<Error><Code>AccessDenied</Code></Error>")]
    store.before = lambda method, path, query: (
        refused[0] if refused and method == "PUT" and path.endswith("run/checkpoint") else None
    )
    with mirror.snapshot() as frozen, pytest.raises(PermissionError):
        mirror.send(frozen)
    put = [path.partition("/run/")[2] for method, path in store.calls if method == "PUT"]
    assert sorted(put[:2]) == ["best/model.ckpt-1.index", "model.ckpt-1.index"]
    assert put[2:] == ["best/checkpoint", "checkpoint"]
    refused.clear()
    store.calls.clear()
    with mirror.snapshot() as frozen:
        mirror.send(frozen)
    assert [path.partition("/run/")[2] for method, path in store.calls if method == "PUT"] == ["checkpoint"]


@pytest.mark.slow
def test_what_does_not_train_fetches_the_newest_checkpoint_alone(train: Train, store: Any, tmp_path: Path) -> None:
    url = f"{store.base}/run"
    train(log_dir=url, max_number_of_steps=4, save_model_steps=2, export_model=mox.ExportKeys.TF_SERVING)
    for start in ({"log_dir": url}, {"checkpoint_path": url}):
        store.calls.clear()
        train(run_mode=mox.ModeKeys.EVAL, max_number_of_steps=1, **start)
        got = {path.partition("/run/")[2] for method, path in store.calls if method == "GET" and "/run/" in path}
        assert got == {"checkpoint", "model.ckpt-4.index", "model.ckpt-4.data-00000-of-00001"}
    for name in names(url):
        if not name.startswith("1/"):
            file.remove(f"{url}/{name}")
    warm = train(log_dir=str(tmp_path / "warm"), warm_start=url, max_number_of_steps=1)  # the exported version
    assert warm.start_step == 0


@pytest.mark.slow
def test_errors_name_the_url(train: Train, store: Any, linear: Any) -> None:
    url = f"{store.base}/run"
    train(log_dir=url, max_number_of_steps=2)
    linear.x = linear.x[:, :2]
    with pytest.raises(CheckpointError, match=rf"checkpoint '{url}/model.ckpt-2' does not fit the model"):
        train(log_dir=url, max_number_of_steps=3)


def test_a_full_disk_here_is_not_taken_for_a_full_store() -> None:
    url, full = "s3://bucket/run", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(DataError, match=rf"{url}: .*No space left") as fetched, remote.told_as("/here", url):
        raise full
    with pytest.raises(CheckpointError, match=f"cannot write {url}/c") as saved, remote.told_as("/here", url):
        raise CheckpointError(f"cannot write /here/c: {full}")
    assert "let TMPDIR name a folder" in str(fetched.value.hint)
    assert fetched.value.hint == saved.value.hint
    assert remote.known_as("/here/c") == "/here/c"


def test_a_store_that_is_not_there_is_told_before_the_training(train: Train, store: Any) -> None:
    with pytest.raises(UsageError, match=r"there is no bucket 's3://mistyped'"):
        train(log_dir="s3://mistyped/run", max_number_of_steps=1)
    with pytest.raises(UsageError, match="expected a bucket and a folder"):
        train(log_dir="s3:///run", max_number_of_steps=1)
    with pytest.raises(CheckpointError, match=rf"found none: log_dir='{store.base}/none'"):
        train(run_mode=mox.ModeKeys.EVAL, log_dir=f"{store.base}/none", max_number_of_steps=1)


@pytest.mark.slow
def test_a_checkpoint_that_was_not_stored_is_not_told_to_be_written(
    train: Train, store: Any, monkeypatch: pytest.MonkeyPatch, console: Any
) -> None:
    monkeypatch.setattr(Mirror, "send", lambda self, frozen: (_ for _ in ()).throw(OSError("disk quota")))

    def stop(step: int) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return False

    with pytest.raises(InterruptedRunError, match=r"model.ckpt-\d+ could not be stored"):
        train(log_dir=f"{store.base}/run", max_number_of_steps=40, fetch_strategy_fn=stop)
    assert "cannot be written: disk quota; what came after the last upload is lost" in console.text


@pytest.mark.slow
def test_the_last_checkpoint_is_stored_before_the_export(
    train: Train, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, there = f"{store.base}/run", []
    monkeypatch.setattr(one_run, "export_run", lambda *given: there.extend(names(url)))
    mox.set_flag("timeline_steps", "1")
    result = train(log_dir=url, max_number_of_steps=3, export_model=mox.ExportKeys.TF_SERVING)
    assert {"checkpoint", "model.ckpt-3.index"} <= set(there)
    assert result.traces == (f"{url}/timeline/timeline-1.json",)


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
def test_a_disk_that_is_full_for_a_while_does_not_end_the_training(
    train: Train, store: Any, monkeypatch: pytest.MonkeyPatch, console: Any
) -> None:
    url, asked, snapshot = f"{store.base}/run", [], Mirror.snapshot

    def failing(self: Mirror) -> Any:
        asked.append(self)
        if len(asked) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return snapshot(self)

    monkeypatch.setattr(Mirror, "snapshot", failing)
    train(log_dir=url, max_number_of_steps=6, save_model_steps=2)
    assert console.text.count("is not up to date: ") == 1
    assert file.exists(f"{url}/model.ckpt-6.index")


def settle(store: Any) -> None:
    """Wait until the store has done what processes asked that are gone: their connections are closed."""
    port = f":{int(store.endpoint.rpartition(':')[2]):04X}"
    half_closed = "08"
    deadline = time.monotonic() + 120
    while any(
        fields[1].endswith(port) and fields[3] == half_closed
        for fields in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)


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
        end = time.monotonic() + 240
        while time.monotonic() < end and not file.exists(f"{url}/checkpoint"):
            time.sleep(0.1)
        with pytest.raises(UsageError, match=rf"process {process.pid} on .* is training into it"):
            train(log_dir=url)
    finally:
        process.kill()
        process.wait()
    settle(store)
    state = file.read(f"{url}/checkpoint")
    step = int(state.split('"')[1].rpartition("-")[2])
    assert file.exists(f"{url}/model.ckpt-{step}.index")
    done = subprocess.run(
        [sys.executable, str(script), url, str(step + 3)], capture_output=True, text=True, timeout=240, check=True
    )
    assert f"from {step} to {step + 3}" in done.stdout
    assert f"is taken over from process {process.pid}" in done.stderr
    assert "waiting up to" not in done.stderr
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_a_store_that_removes_nothing_will_do(train: Train, store: Any, console: Any) -> None:
    url = f"{store.base}/run"
    refused = ("403 Forbidden", [("Content-Type", "application/xml")], b"<Error><Code>AccessDenied</Code></Error>")
    store.before = lambda method, path, query: (
        refused if method == "DELETE" or (method == "POST" and "delete" in query) else None
    )
    for steps in (7, 8):
        result = train(log_dir=url, max_number_of_steps=steps, save_model_steps=1)
        assert (result.global_step, result.checkpoint) == (steps, f"{url}/model.ckpt-{steps}")
    assert console.text.count(f"old checkpoints stay in {url}: ") == 2  # once a training
    assert {f"model.ckpt-{step}.index" for step in range(6, 9)} <= set(names(url))


@pytest.mark.slow
def test_credentials_for_a_folder_alone_will_do(store: Any, tmp_path: Path) -> None:
    refused = ("403 Forbidden", [("Content-Type", "application/xml")], b"<Error><Code>AccessDenied</Code></Error>")
    store.before = lambda method, path, query: None if "team" in f"{path}?{query}" else refused
    mirror = Mirror(f"{store.base}/run", str(tmp_path / "here" / "run"))
    mirror.fetch()
    mirror.fetch_files(["checkpoint"])
    assert mirror.named is None
