"""`moxserve pipeline`: one clear error for each mistake, exit code 2, no traceback; what commands print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def work(tmp_path: Path, digits_dir: Path, repo_root: Path) -> Path:
    """A current directory with the digits and the shipped pipelines."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "digits").symlink_to(digits_dir)
    (tmp_path / "pipelines").mkdir()
    for file in (repo_root / "pipelines").iterdir():
        if file.is_file():
            (tmp_path / "pipelines" / file.name).write_text(file.read_text())
    return tmp_path


def _broken(work: Path, old: str, new: str) -> None:
    text = (work / "pipelines" / "digits.yaml").read_text()
    assert old in text
    (work / "broken.yaml").write_text(text.replace(old, new))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "validate", "check", "show"])
@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (
            "batch_size: 64 ",
            "batch_sise: 64 ",
            """\
broken.yaml:11:3: input.batch_sise: unknown key 'batch_sise'; did you mean 'batch_size' or 'eval_batch_size'?
      batch_sise: 64                          # rows of a training step
      ^
""",
        ),
        (
            "learning_rate: 0.001",
            "learning_rate: fast ",
            """\
broken.yaml:21:18: optimizer.learning_rate: expected a number, got 'fast'
      learning_rate: fast                     # step size
                     ^
""",
        ),
        (
            "plugin: lenet ",
            "plugin: lenet5",
            """\
broken.yaml:16:11: model.plugin: no model plugin 'lenet5'; did you mean 'lenet'?
      plugin: lenet5                          # slim's LeNet
              ^
""",
        ),
    ],
    ids=["unknown key", "wrong type", "unknown plugin"],
)
def test_broken_yaml(run_moxserve: Run, work: Path, command: str, old: str, new: str, error: str):
    _broken(work, old, new)
    done = run_moxserve("pipeline", command, "broken.yaml", cwd=work)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "validate"])
def test_missing_files(run_moxserve: Run, work: Path, command: str):
    done = run_moxserve("pipeline", command, "pipelines/custom.yaml", cwd=work)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "error: pipelines/custom.yaml: no such file; did you mean 'custom_model.yaml' or 'mnist_softmax.yaml'?\n"
    )
    (work / "data" / "digits").unlink()
    done = run_moxserve("pipeline", command, "pipelines/digits.yaml", cwd=work)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: pipelines/digits.yaml:9:14: input.train_dir: no such directory: 'data/digits/images/train' "
        f"(the current directory is {work})\n"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_validate(run_moxserve: Run, work: Path):
    done = run_moxserve("pipeline", "validate", "pipelines/digits.yaml", cwd=work)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "pipelines/digits.yaml: valid "
        "(input image_folder, model lenet, optimizer adam, run train_and_evaluate, export)\n"
    )
    (work / "data" / "digits").unlink()
    assert run_moxserve("pipeline", "validate", "pipelines/digits.yaml", "--no-files", cwd=work).returncode == 0


@pytest.mark.slow
def test_validate_as_json(run_moxserve: Run, work: Path):
    done = run_moxserve("pipeline", "validate", "pipelines/digits.yaml", "--json", cwd=work)
    assert json.loads(done.stdout)["stages"]["model"] == "lenet"
    done = run_moxserve("pipeline", "validate", "pipelines/digits.yaml", "--json", "--set", "model.x=1", cwd=work)
    assert done.returncode == 2
    [problem] = json.loads(done.stdout)["problems"]
    assert (problem["path"], problem["key"]) == ("--set model.x=1", "model.x")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["validate"], ["run", "--dry-run"], ["show"]])
def test_without_tensorflow(work: Path, arguments: list[str]):
    import subprocess

    code = (
        "import sys\n"
        "sys.modules['tensorflow'] = None\n"
        "from moxserve.cli.main import main\n"
        f"main(['pipeline', *{arguments!r}, 'pipelines/digits.yaml'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=work, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_running_without_tensorflow_says_what_to_install(work: Path):
    import subprocess

    code = (
        "import sys\n"
        "sys.modules['tensorflow'] = None\n"
        "from moxserve.cli.main import main\n"
        "main(['pipeline', 'run', 'pipelines/mnist_softmax.yaml'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith('error: run (train) needs TensorFlow\nhint: pip install "moxserve[tensorflow]"\n')


@pytest.mark.slow
def test_dry_run(run_moxserve: Run, work: Path):
    done = run_moxserve("pipeline", "run", "pipelines/digits.yaml", "--dry-run", cwd=work)
    assert (done.returncode, done.stderr) == (0, "")
    train, evaluation = "1437 in data/digits/images/train", "360 in data/digits/images/eval"
    assert done.stdout.splitlines() == [
        "STAGE      PLUGIN              WOULD",
        f"input      image_folder        images 28x28x1 of 10 classes: {train}, {evaluation}",
        "model      lenet               num_classes 10, dropout_keep_prob 0.5, weight_decay 0.0",
        "optimizer  adam                learning_rate 0.001, beta1 0.9, beta2 0.999, epsilon 1e-08",
        "run        train_and_evaluate  train to step 300, checkpoints in runs/digits, then evaluate",
        "export                         version 1 of 'digits' in models/digits",
    ]
    assert not (work / "runs").exists()


@pytest.mark.slow
def test_list(run_moxserve: Run, work: Path):
    (work / "pipelines" / "wrong.yaml").write_text("version: 1\nmodel: {plugin: lenett}\n")
    done = run_moxserve("pipeline", "list", cwd=work)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout
        == """\
PIPELINE                          RUN                 MODEL          DESCRIPTION
pipelines/custom_model.yaml       train_and_evaluate  function       A model_fn of your own
pipelines/digits.yaml             train_and_evaluate  lenet          LeNet on real handwritten digits, exported \
for serving
pipelines/digits_best.yaml        train_and_evaluate  lenet          LeNet on real handwritten digits, trained \
until it gets no better
pipelines/digits_pruned.yaml      train_and_evaluate  lenet          LeNet of which 80 % is pruned while it is trained
pipelines/digits_qat.yaml         train_and_evaluate  lenet          LeNet trained for int8, exported with the ranges \
that it learned
pipelines/digits_resnet.yaml      train_and_evaluate  resnet_v1_20   ResNet v1 of 20 layers on real handwritten \
digits, exported for serving
pipelines/mnist_softmax.yaml      train               mnist_softmax  One linear layer on MNIST-format files
pipelines/textures_pretrain.yaml  train_and_evaluate  network        MobileNet v1 (0.25) on three real textures, to \
start others from
pipelines/textures_retrain.yaml   retrain             network        A last layer for three other textures on cached \
features of MobileNet v1 (0.25), exported for serving
pipelines/textures_transfer.yaml  train_and_evaluate  network        MobileNet v1 (0.25) moved from three real \
textures to three others, exported for serving
pipelines/wide_and_deep.yaml      train_and_evaluate  wide_and_deep  Wide & deep on a real survey, exported with \
tf.Example signatures
pipelines/wrong.yaml                                                 not valid: missing stage 'input'; write for \
example `input: {plugin: image_folder, train_dir: DIR, eval_dir: DIR, batch_size: 32}` (and 3 more)
"""
    )
    assert [f["path"] for f in json.loads(run_moxserve("pipeline", "list", "--json", cwd=work).stdout)][-1] == (
        "pipelines/wrong.yaml"
    )
    done = run_moxserve("pipeline", "list", "nowhere", cwd=work)
    assert (done.returncode, done.stderr) == (
        2,
        "error: no such folder: 'nowhere'\nhint: moxserve pipeline list FOLDER\n",
    )


@pytest.mark.slow
def test_show(run_moxserve: Run, work: Path):
    args = ("pipeline", "show", "pipelines/custom_model.yaml", "--set", "optimizer.momentum=0.5")
    done = run_moxserve(*args, cwd=work, env={"MOXSERVE_RUNS": "/tmp/elsewhere"})
    assert (
        done.stdout
        == """\
version: 1
description: A model_fn of your own
input:
  plugin: image_folder
  batch_size: 50
  train_dir: data/digits/images/train
  eval_dir: data/digits/images/eval
model:
  plugin: function
  target: ./pipelines/custom_model.py:model_fn
  params:
    hidden: 64
optimizer:
  plugin: momentum
  learning_rate: 0.03
  momentum: 0.5
run:
  plugin: train_and_evaluate
  log_dir: /tmp/elsewhere/custom_model
  max_number_of_steps: 300
predict:
  output: /tmp/elsewhere/custom_model/predictions.jsonl
"""
    )
    with_defaults = run_moxserve(*args, "--defaults", cwd=work).stdout
    assert "  use_nesterov: false\n" in with_defaults
    assert json.loads(run_moxserve(*args, "--json", cwd=work).stdout)["optimizer"]["momentum"] == 0.5


@pytest.mark.slow
def test_schema(run_moxserve: Run, work: Path, repo_root: Path):
    done = run_moxserve("pipeline", "schema", cwd=work)
    assert json.loads(done.stdout) == json.loads((repo_root / "pipelines" / "pipeline.schema.json").read_text())
    done = run_moxserve("pipeline", "schema", "--output", "s.json", cwd=work)
    assert (done.stdout, done.stderr) == ("", "wrote s.json\n")
    assert (work / "s.json").read_text() == (repo_root / "pipelines" / "pipeline.schema.json").read_text()


@pytest.mark.slow
def test_run_from_the_command_line(run_moxserve: Run, work: Path):
    args = ("pipeline", "run", "pipelines/mnist_softmax.yaml", "--set", "run.max_number_of_steps=60")
    done = run_moxserve(*args, "--json", cwd=work)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [e["stage"] for e in events if e["event"] == "stage"][:3] == [
        "input (mnist_idx)", "model (mnist_softmax)", "optimizer (sgd)"
    ]  # fmt: skip
    assert [e["mode"] for e in events if e["event"] == "result"] == ["TRAIN", "EVAL"]
    facts = events[-1]
    assert facts["event"] == "pipeline"
    assert facts["train"]["global_step"] == 60
    assert facts["evaluate"]["rows"] == 360
    assert "== input (mnist_idx)\n== model (mnist_softmax)\n== optimizer (sgd)\n" in done.stderr
    again = run_moxserve(*args, cwd=work)
    lines = again.stdout.splitlines()
    assert lines[0] == "was trained to step 60 already: runs/mnist_softmax/model.ckpt-60"
    assert lines[1].startswith("evaluated on 360 rows: loss 0.")
    assert lines[2].endswith("tensorboard --logdir runs/mnist_softmax")
    refused = run_moxserve(*args, "--no-resume", "--json", cwd=work)
    assert refused.returncode == 1
    assert "'runs/mnist_softmax' holds checkpoints of an earlier run" in refused.stderr
    (error,) = map(json.loads, refused.stdout.splitlines())
    assert (error["event"], error["type"], error["exit_code"]) == ("error", "CheckpointError", 1)
    quiet = run_moxserve(*args, "--quiet", "--no-resume", cwd=work)
    assert (quiet.returncode, quiet.stdout) == (1, "")
    assert quiet.stderr.startswith("error: 'runs/mnist_softmax' holds")


@pytest.mark.slow
def test_help_names_every_command_with_a_runnable_example(run_moxserve: Run, work: Path):
    listed = run_moxserve("pipeline", "--help").stdout
    for command in ("run", "validate", "list", "show", "schema"):
        assert f"\n  {command} " in listed
        text = run_moxserve("pipeline", command, "--help").stdout
        example = text.partition("Example:\n    moxserve ")[2].splitlines()[0].split()
        if command != "run":
            assert run_moxserve(*example, cwd=work).returncode == 0
