"""`moxserve export`: what it prints, what it publishes, and how it fails."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moxserve.export.manifest import check_files, read_manifest

MODEL = """
import moxserve.tensorflow as mox
import tensorflow.compat.v1 as tf

def model_fn(inputs, mode, shift=0.0):
    images, labels = inputs
    x = tf.reshape(tf.cast(images, tf.float32) / 255.0, [-1, 28 * 28])
    logits = tf.matmul(x, tf.get_variable("w", [28 * 28, 10], initializer=tf.zeros_initializer()))
    loss = tf.losses.sparse_softmax_cross_entropy(labels, logits)
    if mode == mox.ModeKeys.EXPORT:
        logits += shift
    spec = mox.ExportSpec({"images": images}, {"logits": logits})
    return mox.ModelSpec(loss=loss, log_info={"loss": loss}, export_spec=spec)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, digits_dir: Path) -> Path:
    """A folder with the pipelines `softmax.yaml` and `shifted.yaml`, and a run of each in `softmax` and `shifted`."""
    from moxserve.pipeline.runner import run_pipeline

    folder = tmp_path_factory.mktemp("trained")
    (folder / "model.py").write_text(MODEL)
    text = f"""\
version: 1
input: {{plugin: mnist_idx, dir: {digits_dir}/idx, batch_size: 50, eval_batch_size: 77, seed: 1}}
model: MODEL
optimizer: {{plugin: sgd, learning_rate: 0.5}}
run: {{plugin: train, log_dir: RUN, max_number_of_steps: 3}}
"""
    models = {
        "softmax": "{plugin: mnist_softmax}",
        "shifted": f"{{plugin: function, target: '{folder}/model.py:model_fn', params: {{shift: 0.5}}}}",
    }
    for name, model in models.items():
        path = folder / f"{name}.yaml"
        path.write_text(text.replace("MODEL", model).replace("RUN", str(folder / name)))
        run_pipeline(path)
    return folder


@pytest.fixture
def moxserve(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process, in an empty folder: exit code, standard output, standard error."""
    from moxserve.cli.main import main

    monkeypatch.chdir(tmp_path)

    def run(*args: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as raised:
            main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return int(raised.value.code or 0), captured.out, captured.err

    return run


PUBLISHED = """\
published models/soft/1
  version   1
  size      # MB
  max error 0 on 64 real rows
  warmup    6 records
  seconds   #

SIGNATURE        INPUTS                       OUTPUTS
serving_default  images: uint8[?, 28, 28, 1]  classes: int64[?], logits: float32[?, 10], probabilities: float32[?, 10]
classify         inputs: string[?]            classes: string[?, 10], scores: float32[?, 10]

next: moxserve serve --model_name soft --model_base_path HERE/models/soft
"""


def test_a_run_is_exported_and_the_next_step_is_told(moxserve: Any, trained: Path, tmp_path: Path) -> None:
    code, out, _ = moxserve("export", trained / "softmax", "--tf-serving", "models/soft")
    assert code == 0
    shown = re.sub(r"(size +|seconds +)[\d.]+", r"\1#", out).replace(str(tmp_path), "HERE")
    assert shown == PUBLISHED
    assert check_files("models/soft/1") == []
    manifest = read_manifest("models/soft/1")
    assert manifest is not None
    assert manifest.source.global_step == 3
    assert manifest.model_name == "soft"
    assert manifest.metadata["pipeline"].endswith("config.resolved.yaml")


def test_a_pipeline_file_is_as_good_as_its_run(moxserve: Any, trained: Path) -> None:
    code, out, _ = moxserve(
        *("export", trained / "softmax.yaml", "--tf-serving", "m", "--model-name", "digits", "--version", "7"),
        *("--samples", "10", "--warmup-batches", "2, 4,16", "--atol", "1e-6", "--rtol", "0", "--json"),
    )
    assert code == 0
    facts = json.loads(out)
    assert facts["path"] == os.path.abspath("m/7")
    assert facts["version"] == 7
    assert facts["model_name"] == "digits"
    assert facts["verified_rows"] == facts["verification"]["rows"] == 10
    assert (facts["verification"]["atol"], facts["verification"]["rtol"]) == (1e-6, 0)
    assert facts["warmup_records"] == 6  # of 2, 4 and 10 rows, for two signatures
    assert facts["max_abs_error"] <= 1e-6
    assert facts["signatures"]["classify"] == (
        "classify(inputs: string[?]) -> (classes: string[?, 10], scores: float32[?, 10])"
    )


def test_a_named_version_is_published_with_a_word_about_servers(moxserve: Any, trained: Path) -> None:
    code, out, err = moxserve("export", trained / "softmax", "--tf-serving", "m", "--version", "model", "--no-warmup")
    assert code == 0
    assert "published m/model" in out
    assert "warmup    0 records" in out
    assert "next:" not in out
    assert err == "note: servers look for numbered versions; 'model' is not one\n"


DRY = """\
WOULD USE       VALUE
checkpoint      TRAINED/softmax/model.ckpt-3
inputs          image: uint8[?, 28, 28, 1], label: int64[?]
samples         64
path            m/3
model name      m
variants        none
warmup batches  none
atol            1e-05
rtol            0.0001
"""


def test_a_dry_run_writes_nothing(moxserve: Any, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "m" / "2").mkdir(parents=True)
    code, out, _ = moxserve("export", trained / "softmax", "--tf-serving", "m", "--dry-run", "--no-warmup")
    assert code == 0
    assert out.replace(str(trained), "TRAINED") == DRY
    assert os.listdir(tmp_path / "m") == ["2"]
    code, out, _ = moxserve("export", trained / "softmax", "--tf-serving", "m", "--dry-run", "--json")
    assert json.loads(out)["path"] == "m/3"
    assert json.loads(out)["warmup_batches"] == [1, 8, 32]


def test_the_newest_version_of_a_base_is_found_by_its_name(moxserve: Any, tmp_path: Path) -> None:
    for name in ("00000123", "7", "notes"):
        (tmp_path / "base" / name).mkdir(parents=True)
        (tmp_path / "base" / name / "saved_model.pb").touch()
    code, out, _ = moxserve("export", "base", "--tf-serving", "m", "--dry-run", "--json")
    assert (code, json.loads(out)["source"]) == (0, os.path.join("base", "00000123"))


def test_a_difference_fails_with_exit_code_5_and_publishes_nothing(moxserve: Any, trained: Path) -> None:
    code, out, err = moxserve("export", trained / "shifted", "--tf-serving", "m")
    assert code == 5
    assert out == ""
    first, hint = err.splitlines()
    assert first.startswith("error: export: verifying the SavedModel: signature 'serving_default', output 'logits'")
    assert "differs from the EVAL graph" in first
    assert "max abs error 0.5" in first
    assert hint.startswith("hint: model_fn computes something else in mode EXPORT than in mode EVAL")
    assert os.listdir("m") == []
    code, out, err = moxserve("export", trained / "shifted", "--tf-serving", "m", "--no-check-eval")
    assert code == 0
    assert "note: not compared with the EVAL graph" in err
    assert os.listdir("m") == ["1"]


@pytest.mark.parametrize(
    ("args", "code", "error", "hint"),
    [
        (
            ["nowhere", "--tf-serving", "m"],
            2,
            "'nowhere': there is no such file or directory; expected a pipeline file (.yaml), the directory of a run",
            "pipeline",
        ),
        (["{trained}/softmax"], 2, "export: nothing says what to make", "--tf-serving DIR"),
        (
            ["{trained}/softmax/model.ckpt-3", "--tf-serving", "m"],
            2,
            "is a checkpoint, which does not say what its model is",
            "--checkpoint",
        ),
        (["{trained}", "--tf-serving", "m"], 2, "holds no config.resolved.yaml", "log_dir"),
        (
            ["{trained}/softmax", "--tf-serving", "m", "--checkpoint", "no/model.ckpt-9"],
            1,
            "no checkpoint at 'no/model.ckpt-9'",
            "prefix",
        ),
        (["{trained}/softmax", "--tf-serving", "m", "--version", "a/b"], 2, "version 'a/b': expected -1", None),
        (
            ["{trained}/softmax", "--tf-serving", "m", "--version", "5"],
            1,
            "Export directory already exists. Please specify a different export directory: m/5",
            "-1",
        ),
    ],
)
def test_mistakes_are_one_line_and_a_hint(
    args: list[str], code: int, error: str, hint: str | None, moxserve: Any, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "m" / "5").mkdir(parents=True)
    found, out, err = moxserve("export", *(a.format(trained=trained) for a in args))
    lines = err.splitlines()
    assert (found, out) == (code, "")
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert len(lines) == (2 if hint else 1)
    if hint:
        assert lines[1].startswith("hint: ")
        assert hint in lines[1]
    assert os.listdir(tmp_path / "m") == ["5"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--warmup-batches", "1,0"], "expected whole numbers of at least 1"),
        (["--warmup-batches", "a"], "expected whole numbers of at least 1"),
        (["--samples", "0"], "0 is not in the range x>=1"),
        (["--atol", "-1"], "-1.0 is not in the range x>=0"),
        (["--tf-servin", "m"], "--tf-serving"),
        (["--onnx", "fp23"], "onnx 'fp23': no such precision; known: dynamic, float16, float32, int8"),
        (["--tflite", "bf16"], "tflite in bfloat16 is not made here; tflite has float32, float16, dynamic, int8"),
        (
            ["--tf-serving", "m", "--onnx", "--require", "tflite"],
            "no variant in tflite is made; known: saved_model, onnx",
        ),
        (["--tf-serving", "m", "--onnx", "--limit", "onnx.speed>1"], "'speed' is not a metric"),
        (["--tf-serving", "m", "--tags", "serve"], "--tags does not go with a pipeline or its run"),
        (
            ["--tf-serving", "m", "--frozen", "--grappler", "prune"],
            "unknown Grappler pass 'prune'; did you mean 'pruning'?",
        ),
        (["--tf-serving", "m", "--input", "a=x", "--input", "a=y"], "'a' is given twice"),
        (["--calibration", "max"], "'max' is not one of 'minmax', 'entropy', 'percentile'"),
    ],
)
def test_wrong_options_are_usage_errors(args: list[str], message: str, moxserve: Any, trained: Path) -> None:
    code, _, err = moxserve("export", trained / "softmax", *args)
    assert code == 2
    assert message in err


def test_help_and_mistakes_need_no_tensorflow(run_moxserve: Any, tmp_path: Path) -> None:
    for args, code in ((["--help"], 0), (["nowhere", "--tf-serving", "m"], 2)):
        run = run_moxserve("export", *args, cwd=tmp_path, env={"PYTHONPROFILEIMPORTTIME": "1"})
        assert run.returncode == code
        assert not re.search(r"\| +tensorflow$", run.stderr, re.MULTILINE)
