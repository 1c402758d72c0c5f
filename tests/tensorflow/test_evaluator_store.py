"""The evaluator of a training into a bucket."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import moxserve.tensorflow as mox
from moxserve import file
from moxserve.tensorflow.executor import evaluator, job, watching
from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.remote import Share, mirrored
from moxserve.tensorflow.executor.workers import Part

Train = Callable[..., mox.RunResult]
REFUSED = ("403 Forbidden", [("Content-Type", "application/xml")], b"<Error><Code>AccessDenied</Code></Error>")
GONE = ("404 Not Found", [("Content-Type", "application/xml")], b"<Error><Code>NoSuchKey</Code></Error>")


@pytest.fixture
def url(store: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(watching, "_LOOK_S", 0.02)
    monkeypatch.setattr(evaluator, "_POLL_S", 0.02)
    return f"{store.base}/run"


@pytest.fixture
def train_there(train_into: Callable[[str], Train], url: str) -> Train:
    return train_into(url)


@pytest.fixture
def evaluate_there(as_evaluator: Callable[[Train], Train], train_there: Train) -> Train:
    return as_evaluator(train_there)


def evaluations(url: str) -> dict[int, dict[str, float]]:
    path = f"{url}/eval/evaluations.json"
    found = json.loads(file.read(path)) if file.exists(path) else {"evaluations": []}
    return {evaluation["step"]: evaluation["metrics"] for evaluation in found["evaluations"]}


def fetched(store: Any) -> set[str]:
    return {path.partition("/run/")[2] for method, path in store.calls if method == "GET" and "/run/" in path}


@pytest.mark.slow
def test_every_checkpoint_in_the_bucket_is_evaluated_once(
    train_there: Train, evaluate_there: Train, linear: Any, variable: Any, url: str, store: Any, scratch: Path
) -> None:
    train_there()
    before = set(file.list_directory(url, skip_dir=True))
    store.calls.clear()
    result = evaluate_there()
    assert fetched(store) - {""} == {
        *("checkpoint", ".moxserve-training", "eval/evaluations.json"),
        *(f"model.ckpt-{step}.{part}" for step in (2, 4, 5) for part in ("index", "data-00000-of-00001")),
    }
    found = evaluations(url)
    assert list(found) == [2, 4, 5]
    with file.local_copy(url) as folder:
        for step, metrics in found.items():
            w = variable(f"{folder}/model.ckpt-{step}", "w")
            assert metrics["loss"] == pytest.approx(np.mean((linear.x @ w - linear.y) ** 2), rel=1e-5)
        events = [
            event
            for path in Path(folder, "eval").glob("events.*")
            for event in tf.compat.v1.train.summary_iterator(str(path))
        ]
    assert sorted(event.step for event in events for value in event.summary.value if "loss" in value.tag) == [2, 4, 5]
    assert (result.mode, result.global_step, result.stop_reason) == ("EVAL", 5, "training_ended")
    assert result.checkpoint == f"{url}/model.ckpt-5"
    assert set(file.list_directory(url, skip_dir=True)) == before  # nothing but the evaluations was sent
    store.calls.clear()
    again = evaluate_there()
    assert fetched(store) - {""} == {"checkpoint", ".moxserve-training", "eval/evaluations.json"}
    assert (again.global_step, again.local_steps, dict(again.metrics)) == (5, 0, found[5])
    assert again.checkpoint == f"{url}/model.ckpt-5"
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_a_bucket_is_watched_beside_the_training(
    train_there: Train, linear: Any, url: str, console: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_there(max_number_of_steps=2)  # its end is not the one that the evaluator waits for
    results: list[mox.RunResult] = []
    monkeypatch.setenv("MOXSERVE_FLAGS", "--job_name=evaluator")
    beside = threading.Thread(target=lambda: results.append(train_there(max_number_of_steps=6)), daemon=True)
    beside.start()
    until(lambda: "the evaluator watches s3://" in console.text)
    monkeypatch.delenv("MOXSERVE_FLAGS")

    class Waits(tf.compat.v1.train.SessionRunHook):
        """Every checkpoint is evaluated before the last but one of the steps after it: it is sent with the next."""

        def __init__(self) -> None:
            self.step = 2

        def after_run(self, run_context: Any, run_values: Any) -> None:
            saved = set(range(2, self.step, 2))
            until(lambda: saved <= set(evaluations(url)))
            self.step += 1

    def model_fn(inputs: Any, mode: str) -> mox.ModelSpec:
        spec = linear.model_fn(inputs, mode)
        hooks = [Waits()] if mode == mox.ModeKeys.TRAIN else []
        return mox.ModelSpec(loss=spec.loss, log_info=spec.log_info, hooks=hooks)

    train_there(max_number_of_steps=6, model_fn=model_fn)
    beside.join(120)
    assert not beside.is_alive()
    assert (results[0].global_step, list(evaluations(url))) == (6, [2, 4, 6])


@pytest.mark.slow
def test_a_training_that_ends_while_its_bucket_is_looked_at_is_evaluated_to_its_end(
    train_there: Train, evaluate_there: Train, url: str, store: Any
) -> None:
    train_there(max_number_of_steps=4)
    last = ("model.ckpt-4.data-00000-of-00001", "model.ckpt-4.index", "checkpoint", ".moxserve-training")
    ended = {name: file.read(f"{url}/{name}", binary=True) for name in last}
    for name in last[:2]:
        file.remove(f"{url}/{name}")
    file.write(f"{url}/checkpoint", 'model_checkpoint_path: "model.ckpt-2"')
    file.write(f"{url}/.moxserve-training", "7\n")

    def ends(method: str, path: str, query: str) -> None:
        if method == "GET" and path.endswith("/.moxserve-training"):
            store.before = None
            for name, content in ended.items():
                store.write(f"{url.partition('://')[2].partition('/')[2]}/{name}", content)

    store.before = ends
    assert evaluate_there(max_number_of_steps=4).global_step == 4
    assert list(evaluations(url)) == [2, 4]


@pytest.mark.slow
def test_a_store_that_is_away_is_waited_for(
    train_there: Train, evaluate_there: Train, url: str, store: Any, console: Any
) -> None:
    train_there(max_number_of_steps=4)
    failing = {"delimiter=": 3, "model.ckpt-4.data": 2, "evaluations.json": 2}

    def away(method: str, path: str, query: str) -> Any:
        for part, left in failing.items():
            if left and part in f"{path}?{query}" and (part != "evaluations.json" or method == "PUT"):
                failing[part] -= 1
                return REFUSED
        return None

    store.before = away
    result = evaluate_there(max_number_of_steps=4)
    assert set(failing.values()) == {0}
    assert (result.global_step, list(evaluations(url))) == (4, [2, 4])
    assert f"Restoring parameters from {url}/model.ckpt-" in console.text
    assert console.text.count("answers again") >= 1
    assert console.text.count(f"{url} cannot be watched: ") < 7


@pytest.mark.slow
def test_a_checkpoint_that_goes_while_it_is_fetched_is_left_out(
    train_there: Train, evaluate_there: Train, url: str, store: Any, console: Any
) -> None:
    train_there(max_number_of_steps=4)
    store.before = lambda method, path, query: GONE if "model.ckpt-2.data" in path else None
    assert evaluate_there(max_number_of_steps=4).global_step == 4
    assert list(evaluations(url)) == [4]
    assert f"{url}/model.ckpt-2 was dropped before it could be evaluated" in console.text


@pytest.mark.slow
def test_a_checkpoint_of_the_same_name_is_evaluated_again(
    train_there: Train, evaluate_there: Train, url: str, linear: Any
) -> None:
    train_there(max_number_of_steps=2)
    evaluate_there(max_number_of_steps=2)
    first = evaluations(url)
    for name in ("checkpoint", "model.ckpt-2.index", "model.ckpt-2.data-00000-of-00001"):
        file.remove(f"{url}/{name}")
    train_there(max_number_of_steps=2, optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.01))
    evaluate_there(max_number_of_steps=2)
    found = json.loads(file.read(f"{url}/eval/evaluations.json"))["evaluations"]
    assert [entry["step"] for entry in found] == [2, 2]
    assert found[0]["metrics"] == first[2] != found[1]["metrics"]


@pytest.mark.slow
def test_processes_that_restore_nothing_fetch_no_checkpoint(
    train: Train, url: str, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(job.JOB_VARIABLE, "a")
    monkeypatch.setattr(Part, "_runs", 0)
    note_end = job.note_end
    monkeypatch.setattr(job, "note_end", lambda settings, run: note_end(settings, 1))  # as a chief does
    train(log_dir=url)
    assert json.loads(file.read(f"{url}/.moxserve-job")) == {"job": "a", "ended": [1]}
    mox.set_flag("ps_hosts", "127.0.0.1:1")  # nobody is there
    mox.set_flag("worker_hosts", "127.0.0.1:2,127.0.0.1:3")
    for name, index in (("worker", 1), ("ps", 0)):
        mox.set_flag("job_name", name)
        mox.set_flag("task_index", index)
        monkeypatch.setattr(Part, "_runs", 0)
        store.calls.clear()
        result = train(log_dir=url, checkpoint_path=f"{store.base}/elsewhere", max_number_of_steps=100)
        assert (result.stop_reason, result.global_step, result.local_steps) == ("already_trained", 5, 0)
        assert result.checkpoint == f"{url}/model.ckpt-5"
        beside = {"hooks.json", "input-1.json", "input-1-skipped.jsonl"} if name == "worker" else set()
        assert fetched(store) == {"checkpoint", ".moxserve-job", *beside}
        assert not any(method in ("PUT", "DELETE") for method, _ in store.calls)


def test_a_follower_sends_what_is_its_own(store: Any) -> None:
    url = f"{store.base}/run"
    file.write(f"{url}/checkpoint", 'model_checkpoint_path: "model.ckpt-7"')
    file.write(f"{url}/input-1.json", "{}")
    with mirrored(url, Share.FOLLOWS, 1) as folder:
        assert sorted(path.name for path in Path(folder).iterdir()) == ["checkpoint", "input-1.json"]
        Path(folder, "input-1.json").write_text('{"runs": []}')
    assert [path.partition("/run/")[2] for method, path in store.calls if method == "PUT"][2:] == ["input-1.json"]
    assert file.list_directory(url) == ["checkpoint", "input-1.json"]
    file.write(f"{url}/hooks.json", "{}")
    with mirrored(url, Share.FOLLOWS, 1) as folder:  # what is not its own it may drop here, but not there
        for path in Path(folder).iterdir():
            path.unlink()
    assert file.list_directory(url) == ["checkpoint", "hooks.json"]


def test_a_worker_of_a_training_in_phases_looks_at_the_checkpoint(store: Any) -> None:
    url = f"{store.base}/run"
    file.write(f"{url}/checkpoint", 'model_checkpoint_path: "model.ckpt-7" all_model_checkpoint_paths: "model.ckpt-3"')
    for step in (3, 7):
        for part in ("index", "data-00000-of-00001"):
            file.write(f"{url}/model.ckpt-{step}.{part}", "x")
    file.write(f"{url}/input-1.json", "{}")
    topology = Topology(job="worker", index=1, workers=("a:1", "b:1"))
    share = Share.of(topology, training=True, phased=True)
    with mirrored(url, share, 1) as folder:
        there = sorted(path.name for path in Path(folder).iterdir())
    assert there == ["checkpoint", "input-1.json", "model.ckpt-7.data-00000-of-00001", "model.ckpt-7.index"]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
