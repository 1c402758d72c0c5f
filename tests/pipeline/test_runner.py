"""Pipelines, run: each stage does its work on real data, what it leaves is complete, and failures name their stage."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from moxserve.config import load_pipeline
from moxserve.errors import CheckpointError, ConfigError, DataError, LimitExceededError, MoxserveError
from moxserve.pipeline.plan import plan
from moxserve.pipeline.prepared import load_run
from moxserve.pipeline.runner import run_pipeline
from moxserve.pipeline.stage import StageError

Write = Callable[..., Path]


def test_train_leaves_a_checkpoint_and_what_was_resolved(softmax: Write, work: Path):
    told: list[str] = []
    result = run_pipeline(softmax(), ["optimizer.learning_rate=0.25"], talk=told.append)
    assert told == ["input (mnist_idx)", "model (mnist_softmax)", "optimizer (sgd)", "run (train)"]
    assert result.report.checkpoint == "run/model.ckpt-30"
    assert (work / "run" / "model.ckpt-30.index").is_file()
    resolved = yaml.safe_load((work / "run" / "config.resolved.yaml").read_text())
    assert resolved["optimizer"] == {"plugin": "sgd", "learning_rate": 0.25, "wrappers": []}
    assert resolved["run"]["log_dir"] == str(work / "run")
    assert resolved["input"]["shuffle"] is True
    facts = result.to_json()
    assert facts["train"]["global_step"] == 30
    assert "evaluate" not in facts
    json.dumps(facts)


@pytest.mark.slow
def test_metrics_are_exact_over_all_rows(softmax: Write, digits_dir: Path):
    """77 does not divide 360: the last step is smaller and must weigh less."""
    import tensorflow as tf

    result = run_pipeline(softmax(("plugin: train,", "plugin: train_and_evaluate,")))
    reader = tf.train.load_checkpoint(result.report.checkpoint)
    from moxserve.data.digits import load_digits

    digits = load_digits().eval
    x = digits.images.reshape(360, -1).astype(np.float32) / 255
    logits = x @ reader.get_tensor("W") + reader.get_tensor("b")
    accuracy = (logits.argmax(axis=1) == digits.labels).mean()
    shifted = logits - logits.max(axis=1, keepdims=True)
    loss = (np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(360), digits.labels]).mean()
    assert result.evaluate["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert result.evaluate["loss"] == pytest.approx(loss, rel=1e-4)
    assert result.evaluated == result.report.rows == 360


@pytest.mark.slow
def test_a_seed_makes_the_weights_that_a_training_ends_with(softmax: Write):
    import tensorflow as tf

    dropout = ("plugin: mnist_softmax", "plugin: lenet")

    def trained(name: str, seed: int) -> np.ndarray:
        sets = [f"run.log_dir={name}", f"run.seed={seed}", "run.max_number_of_steps=3"]
        done = run_pipeline(softmax(dropout), sets)
        weights: np.ndarray = tf.train.load_checkpoint(done.report.checkpoint).get_tensor("LeNet/fc3/weights")
        return weights

    once, again, other = trained("a", 5), trained("b", 5), trained("c", 6)
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - other).max() > 0.01


@pytest.mark.slow
def test_flags_of_a_training_are_keys_of_its_run(softmax: Write, monkeypatch: pytest.MonkeyPatch):
    import moxserve.tensorflow as mox

    seen: list[dict[str, Any]] = []
    ran = mox.run
    names = ("compute_dtype", "loss_scale")

    def run(**kwargs: Any) -> mox.RunResult:
        seen.append({name: mox.get_flag(name) for name in names})
        return ran(**kwargs)

    monkeypatch.setattr(mox, "run", run)
    sets = ["run.compute_dtype=bfloat16", "run.loss_scale=16", "run.max_number_of_steps=3"]
    assert run_pipeline(softmax(), sets).report.train.global_step == 3
    assert seen == [{"compute_dtype": "bfloat16", "loss_scale": 16.0}]
    assert [mox.get_flag(name) for name in names] == ["float32", 1.0]  # of this training only
    with pytest.raises(ConfigError, match=r"compute_dtype: .*'float32', 'float16' or 'bfloat16'"):
        run_pipeline(softmax(), ["run.compute_dtype=half"])


@pytest.mark.slow
def test_resume_and_already_trained(softmax: Write):
    path = softmax()
    run_pipeline(path)
    longer = run_pipeline(path, ["run.max_number_of_steps=40"])
    assert (longer.report.train.start_step, longer.report.train.global_step) == (30, 40)
    again = run_pipeline(path, ["run.max_number_of_steps=40"])
    assert again.report.train.stop_reason == "already_trained"
    with pytest.raises(CheckpointError, match="'run' holds checkpoints of an earlier run"):
        run_pipeline(path, resume=False)


@pytest.mark.slow
def test_stages_after_the_run(softmax: Write, work: Path, digits_dir: Path):
    more = (
        "export: {tf_serving: models/m, model_name: m, samples: 20, warmup: [1, 4]}\n"
        "evaluate: {require: {accuracy: 0.5}}\npredict: {output: out/preds.jsonl}\n"
    )
    result = run_pipeline(softmax(more=more))
    assert result.export.version == 1
    assert result.export.max_abs_error <= 1e-5
    assert (work / "models" / "m" / "1" / "saved_model.pb").is_file()
    evaluation = json.loads((work / "run" / "evaluation.json").read_text())
    assert evaluation == {"checkpoint": "run/model.ckpt-30", "rows": 360, "metrics": dict(result.evaluate)}
    lines = [json.loads(line) for line in (work / "out" / "preds.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(360))
    assert result.predictions == ("out/preds.jsonl", 360)
    right = sum(line["class"] == line["label"] for line in lines)
    assert right / 360 == pytest.approx(result.evaluate["accuracy"], abs=1e-6)
    first = lines[0]
    assert set(first) == {"index", "class", "label", "logits", "probabilities", "classes", "labels"}
    assert sum(first["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert first["classes"] == int(np.argmax(first["logits"])) == int(first["class"])
    manifest = json.loads((work / "models" / "m" / "1" / "assets.extra" / "moxserve.json").read_text())
    assert "config_sha256" in json.dumps(manifest)
    assert set(result.seconds) == {"prepare", "run", "export", "evaluate", "predict"}


@pytest.mark.slow
def test_a_required_metric_that_is_not_reached(softmax: Write):
    with pytest.raises(
        LimitExceededError, match=r"evaluate: accuracy is 0\.\d+, evaluate\.require asks for at least 2"
    ):
        run_pipeline(softmax(more="evaluate: {require: {accuracy: 2}}\n"))
    with pytest.raises(
        ConfigError, match=r"p.yaml:6:27: evaluate.require.acc: the model reports no 'acc'; it has accuracy"
    ):
        run_pipeline(softmax(more="evaluate: {require: {acc: 2}}\n"), ["run.max_number_of_steps=31"])


@pytest.mark.slow
def test_evaluate_and_predict_as_runs(softmax: Write, work: Path):
    trained = run_pipeline(softmax(("plugin: train,", "plugin: train_and_evaluate,")))
    before = (work / "run" / "config.resolved.yaml").read_text()
    run = "run: {plugin: train, log_dir: run, max_number_of_steps: 30, log_every_n_steps: 10}"
    sgd = "optimizer: {plugin: sgd, learning_rate: 0.5}\n"
    evaluate = softmax((run, "run: {plugin: evaluate, log_dir: run, checkpoint_path: run}"), (sgd, ""))
    result = run_pipeline(evaluate)
    assert result.evaluate == trained.evaluate
    assert result.report.train is None
    # A run that trains nothing leaves the record of the one that did.
    assert (work / "run" / "config.resolved.yaml").read_text() == before
    predict = softmax(
        (run, "run: {plugin: predict, log_dir: other, checkpoint_path: run/model.ckpt-30, output: p.jsonl}"), (sgd, "")
    )
    assert run_pipeline(predict).report.rows == 360
    assert len((work / "p.jsonl").read_text().splitlines()) == 360
    with pytest.raises(CheckpointError, match=r"run \(predict\): no checkpoint at 'nowhere'"):
        run_pipeline(predict, ["run.checkpoint_path=nowhere"])


@pytest.mark.slow
def test_load_run_builds_the_same_from_a_moved_directory(softmax: Write, work: Path, monkeypatch: pytest.MonkeyPatch):
    run_pipeline(softmax(more="export: {tf_serving: m, model_name: named}\n"), ["export=null"])
    shutil.move(work / "run", work / "elsewhere")
    (work / "cwd").mkdir()
    monkeypatch.chdir(work / "cwd")
    prepared = load_run("../elsewhere")
    assert prepared.labels == tuple("0123456789")
    assert prepared.log_dir == "../elsewhere"
    job = prepared.export_job("base", samples=5, model_name="x")
    assert job.checkpoint == "../elsewhere/model.ckpt-30"
    assert [str(s) for s in job.inputs] == ["image: uint8[?, 28, 28, 1]", "label: int64[?]"]
    assert [len(rows) for rows in job.samples] == [5, 5]
    assert (job.model_name, job.warmup_batches, job.base_dir) == ("x", (1, 8, 32), "base")


def test_load_run_needs_a_run(work: Path):
    (work / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"'empty' holds no config\.resolved\.yaml"):
        load_run("empty")
    with pytest.raises(CheckpointError, match=r"'none' does not exist; expected a directory with a config\.resolved"):
        load_run("none")


def test_a_run_with_a_plugin_beside_the_yaml_loads_from_anywhere(
    softmax: Write, work: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = work / "pipes" / "plugins"
    folder.mkdir(parents=True)
    (folder / "runner_test_plugin.py").write_text(
        "from moxserve_plugins.mnist_softmax.config import MnistSoftmax\n"
        "PLUGINS = {'model.mine': 'runner_test_plugin:Mine'}\n"
        "class Mine(MnistSoftmax):\n    'Mine.'\n"
    )
    path = softmax(("plugin: mnist_softmax", "plugin: mine"))
    shutil.move(path, work / "pipes" / "p.yaml")
    run_pipeline("pipes/p.yaml", ["run.max_number_of_steps=1"])
    (work / "cwd").mkdir()
    monkeypatch.chdir(work / "cwd")
    assert load_run(work / "run").config.model.plugin == "mine"


def test_plan_does_nothing(softmax: Write, work: Path, digits_dir: Path):
    more = "export: {tf_serving: m, model_name: x}\nevaluate: {require: {accuracy: 0.5}}\npredict: {output: p}\n"
    stages = plan(load_pipeline(softmax(more=more)))
    assert stages == [
        ("input", "mnist_idx", f"images 28x28x1: 1437 to train, 360 to evaluate, in {digits_dir}/idx"),
        ("model", "mnist_softmax", ""),
        ("optimizer", "sgd", "learning_rate 0.5"),
        ("run", "train", "train to step 30, checkpoints in run"),
        ("export", "", "version 1 of 'x' in m"),
        ("evaluate", "", "the whole evaluation data, accuracy of at least 0.5"),
        ("predict", "", "one line a row to p"),
    ]
    assert sorted(p.name for p in work.iterdir()) == ["p.yaml"]


MODEL = """\
import tensorflow.compat.v1 as tf
import moxserve.tensorflow as mox

def broken(inputs, mode):
    return undefined_name

def late(inputs, mode):
    loss = tf.get_variable("w", [1])[0] + tf.cast(tf.reduce_mean(tf.cast(inputs[1], tf.float32)), tf.float32)
    checked = tf.debugging.assert_less(loss, -1e9, message="the loss is too large")
    with tf.control_dependencies([checked]):
        loss = tf.identity(loss)
    return mox.ModelSpec(loss=loss, log_info={"loss": loss})

def scalar(inputs, mode):
    w = tf.get_variable("w", [1])
    loss = tf.reduce_sum(w)
    return mox.ModelSpec(loss=loss, log_info={"loss": loss}, output_info={"w": loss})
"""


@pytest.mark.slow
def test_errors_in_a_users_function_name_stage_plugin_and_line(softmax: Write, work: Path):
    (work / "m.py").write_text(MODEL)
    path = softmax(("plugin: mnist_softmax", "plugin: function, target: './m.py:broken'"))
    with pytest.raises(MoxserveError) as caught:
        run_pipeline(path)
    assert caught.value.message == (
        f"run (train): NameError: name 'undefined_name' is not defined (at {os.path.realpath(work)}/m.py:5 in broken)"
    )
    assert isinstance(caught.value, StageError)
    assert isinstance(caught.value.__cause__, NameError)
    with pytest.raises(MoxserveError, match=r"run \(train\): .*the loss is too large"):
        run_pipeline(path, ["model.target=./m.py:late"])
    with pytest.raises(DataError, match=r"predict: outputs must have one row for each input row; got w \[\]"):
        run_pipeline(path, ["model.target=./m.py:scalar", "predict.output=p.jsonl"])
    assert not (work / "p.jsonl").exists()


def test_parameters_that_do_not_go_together_have_their_place(softmax: Write):
    path = softmax(("plugin: mnist_softmax", "plugin: mnist_softmax, num_classes: 7"))
    with pytest.raises(ConfigError) as caught:
        run_pipeline(path)
    assert str(caught.value).startswith(f"{path}:3:45: model.num_classes: expected 10, the classes of the input")


def test_a_run_without_the_data_it_needs(work: Path, digits_dir: Path):
    (work / "p.yaml").write_text(f"""\
version: 1
input: {{plugin: image_folder, train_dir: {digits_dir}/images/train, batch_size: 50}}
model: {{plugin: mnist_softmax}}
optimizer: {{plugin: sgd, learning_rate: 0.5}}
run: {{plugin: train_and_evaluate, log_dir: run, max_number_of_steps: 3}}
""")
    with pytest.raises(ConfigError, match="input: gives no evaluation data, which EVAL needs"):
        run_pipeline("p.yaml")
    assert not list((work / "run").glob("model.ckpt*"))


@pytest.mark.slow
def test_an_image_that_cannot_be_decoded_is_named(work: Path, digits_dir: Path):
    data = Path(shutil.copytree(digits_dir / "images" / "eval", work / "data"))
    bad = next((data / "3").glob("*.png"))
    bad.write_bytes(b"no image")
    (work / "p.yaml").write_text("""\
version: 1
input: {plugin: image_folder, train_dir: data, batch_size: 50, channels: 1, cache_mb: 0}
model: {plugin: mnist_softmax}
optimizer: {plugin: sgd, learning_rate: 0.5}
run: {plugin: train, log_dir: run, max_number_of_steps: 9}
""")
    with pytest.raises(MoxserveError) as caught:
        run_pipeline("p.yaml")
    assert f"data/3/{bad.name} cannot be decoded" in str(caught.value)
    assert str(caught.value).startswith("run (train): ")


def test_a_log_dir_that_cannot_be_made(softmax: Write, work: Path):
    (work / "taken").write_text("")
    with pytest.raises(MoxserveError, match=r"run \(train\): \w+Error: .*taken"):
        run_pipeline(softmax(), ["run.log_dir=taken/run"])


@pytest.mark.slow
def test_a_signal_saves_the_state_and_the_next_run_goes_on(softmax: Write, work: Path):
    """SIGTERM in the middle of a long run: status 143, a checkpoint, and a resumed run that ends where it should."""
    path = softmax(("max_number_of_steps: 30", "max_number_of_steps: 100000000"))
    command = [sys.executable, "-m", "moxserve", "pipeline", "run", str(path), "--set", "export={tf_serving: m}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "step: 100" in line:
                break
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(200) == 143, rest
    assert "Traceback" not in rest
    # Nothing after the run has happened.
    assert not (work / "m").exists()
    [index] = list((work / "run").glob("model.ckpt-*.index"))
    step = int(index.stem.rpartition("-")[2])
    resumed = run_pipeline(path, [f"run.max_number_of_steps={step + 7}"])
    assert (resumed.report.train.start_step, resumed.report.train.global_step) == (step, step + 7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "mnist_softmax", "custom_model"])
def test_shipped_pipelines(name: str, repo_root: Path, digits_dir: Path, work: Path, caplog: pytest.LogCaptureFixture):
    (work / "data").mkdir()
    (work / "data" / "digits").symlink_to(digits_dir)
    (work / "pipelines").symlink_to(repo_root / "pipelines")
    with caplog.at_level(logging.WARNING):
        result = run_pipeline(f"pipelines/{name}.yaml")
    assert result.evaluate["accuracy"] >= {"digits": 0.97}.get(name, 0.9)
    assert (result.export is not None) == (name == "digits")
    assert result.report.checkpoint


def test_every_key_of_the_shipped_pipelines_has_its_comment(repo_root: Path):
    for path in (repo_root / "pipelines").glob("*.yaml"):
        for line in path.read_text().splitlines():
            if line.startswith("  ") and ":" in line and not line.strip().startswith("#"):
                key = line.split(":")[0].strip()
                assert "#" in line or key in ("plugin", "hidden"), f"{path.name}: {line}"


def test_names_of_outputs_that_are_no_labels(work: Path) -> None:
    from moxserve.pipeline.steps import _RowWriter

    with open("o", "wb") as f:
        writer = _RowWriter(f, ["a", "b"], ("no", "yes"))
        batch: dict[str, Any] = {
            "classes": np.array([1, 7]),
            "labels": np.array([0.5, 1.0]),
            "text": np.array([b"\xc3\xa4", b"\xff"], object),
            "deep": np.arange(4).reshape(2, 1, 2),
        }
        writer.write([batch, {"classes": np.array([0])}])
    rows = [json.loads(line) for line in Path("o").read_text().splitlines()]
    assert rows == [
        {"index": 0, "input": "a", "class": "yes", "classes": 1, "labels": 0.5, "text": "ä", "deep": [[0, 1]]},
        {"index": 1, "input": "b", "classes": 7, "labels": 1.0, "text": "\\xff", "deep": [[2, 3]]},
        {"index": 2, "class": "no", "classes": 0},
    ]
