"""The pipelines that compress: accuracy of what they train and export, in one command each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moxserve.config.pipeline import load_pipeline
from moxserve.errors import ConfigError
from moxserve.pipeline.plan import plan
from moxserve.pipeline.prepared import load_run
from moxserve.pipeline.runner import run_pipeline
from moxserve.pipeline.steps import evaluate


@pytest.fixture
def work(tmp_path: Path, digits_dir: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "digits").symlink_to(digits_dir)
    (tmp_path / "pipelines").symlink_to(repo_root / "pipelines")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_mistakes_have_their_place(work: Path) -> None:
    def told(*overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load_pipeline("pipelines/digits_qat.yaml", overrides, check=True)
        return str(caught.value)

    assert "quantization.start_step: expected a step before run.max_number_of_steps, which is 800" in told(
        "quantization.start_step=800"
    )
    assert "unknown key 'start'" in told("quantization.start=3")
    assert "pruning.end_step" in told("pruning={begin_step: 5, end_step: 4}")
    assert "not a regular expression" in told("pruning={end_step: 4, exclude: ['(']}")


def test_the_plan_tells_of_both(work: Path) -> None:
    overrides = ["pruning={end_step: 400, exclude: [conv1]}"]
    lines = {name: told for name, _, told in plan(load_pipeline("pipelines/digits_qat.yaml", overrides))}
    assert lines["quantization"] == "int8 from step 600"
    assert lines["pruning"] == "80 % of each kernel zero, from step 0 to 400, without conv1"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_for_int8_costs_no_accuracy(work: Path) -> None:
    result = run_pipeline("pipelines/digits_qat.yaml", ["export.measure=false", "export.warmup=[1]"])
    prepared = load_run("runs/digits_qat")
    float_fn = prepared.model_fn.model_fn  # type: ignore[attr-defined]
    float_accuracy = max(
        evaluate(prepared.data, float_fn, f"runs/digits_qat/model.ckpt-{step}", "e")["accuracy"] for step in (600, 800)
    )
    # 0.2 points of 360 rows is less than one of them; trainings differ by more than that from run to run.
    assert result.evaluate["accuracy"] >= float_accuracy - 0.2 / 100 - 2 / 360
    assert result.evaluate["accuracy"] > 0.975
    from moxserve.tensorflow.executor.inputs import collect_samples

    images, labels = collect_samples(prepared.input_fn, "EVAL", 120, False, 360)
    from ai_edge_litert.interpreter import Interpreter

    model = Path(str(result.export.path if result.export else "")) / "variants" / "tflite_int8" / "model.tflite"
    runner = Interpreter(model_path=str(model)).get_signature_runner()
    correct = np.mean(runner(images=images)["logits"].argmax(1) == labels)
    # One image may fall on the other side of the fence.
    assert correct >= result.evaluate["accuracy"] - 0.2 / 100 - 1 / 360


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_four_fifths_of_the_weights_can_go(work: Path) -> None:
    result = run_pipeline("pipelines/digits_pruned.yaml", ["export=null"])
    assert result.evaluate["sparsity"] == pytest.approx(0.8, abs=0.001)
    assert result.evaluate["accuracy"] > 0.9861 - 0.01  # what digits.yaml reaches, less a point
