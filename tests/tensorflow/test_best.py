"""BestCheckpointHook: which checkpoints stay in `log_dir/best`, that they are what was evaluated, who can use them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import CheckpointError, ModelSpecError
from moxserve.tensorflow.executor.env import tf1

Train = Callable[..., mox.RunResult]
NAN = float("nan")


def scripted(linear: Any, values: list[float], **kwargs: Any) -> Callable[..., Any]:
    """The linear model; its evaluations, one after every step, give these values in order."""
    remaining: Iterator[float] = iter(values)

    class Scripted(mox.BestCheckpointHook):
        def run_inter(self, n_steps: int = 0) -> dict[str, float]:
            return {**super().run_inter(n_steps), "accuracy": next(remaining)}

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = linear.model_fn(inputs, mode)
        info = {"accuracy": spec.losses[0] * 0, "loss": spec.losses[0]}
        spec.hooks.append(Scripted(info, "accuracy", **{"batch_size": 10, "samples_in_train": 10, **ONE, **kwargs}))
        return spec

    return model_fn


ONE = {"samples_in_eval": 10}


def listed(log_dir: Path) -> list[tuple[int, float]]:
    """The steps and values in best.json, which must be those of the files that are there."""
    content = json.loads((log_dir / "best/best.json").read_text())
    assert (content["version"], content["monitor"]) == (1, "accuracy")
    assert {e["name"] for e in content["checkpoints"]} == {p.stem for p in (log_dir / "best").glob("*.index")}
    return [(entry["step"], entry["value"]) for entry in content["checkpoints"]]


@pytest.mark.parametrize(
    ("values", "arguments", "best", "lines"),
    [
        ([0.2, 0.9, 0.5, 0.9], {}, [(2, 0.9)], 2),
        ([0.2, 0.9, 0.5, 0.7], {"keep": 2}, [(2, 0.9), (4, 0.7)], 4),
        ([NAN, 0.9, 0.5, NAN], {"keep": 3, "mode": "min"}, [(3, 0.5), (2, 0.9)], 2),
    ],
)
def test_the_best_stay(
    values: list[float], arguments: Any, best: Any, lines: int, train: Train, linear: Any, tmp_path: Path, console: Any
) -> None:
    result = train(
        model_fn=scripted(linear, values, **arguments), inter_mode="EVAL", max_number_of_steps=4, log_dir=str(tmp_path)
    )
    assert listed(tmp_path) == best
    assert result.best == str(tmp_path / f"best/model.ckpt-{best[0][0]}")
    assert result.checkpoint == str(tmp_path / "model.ckpt-4")  # beside the best, as ever
    assert tf1.train.latest_checkpoint(str(tmp_path / "best")) == result.best
    line = f"[BestCheckpoint] step: {best[0][0] - 1} accuracy: {best[0][1]:.3f} is the best so far: {result.best}"
    assert f"INFO:tensorflow:{line}" in console.lines
    assert sum("[BestCheckpoint] step:" in line for line in console.lines) == lines  # only what is kept has one


def test_a_best_checkpoint_is_the_state_that_was_evaluated(
    train: Train, linear: Any, tmp_path: Path, variable: Any
) -> None:
    model_fn = scripted(linear, [0.1, 0.2, 0.9, 0.3, 0.3], export_best=True)
    result = train(model_fn=model_fn, inter_mode="EVAL", log_dir=str(tmp_path), export_model=mox.ExportKeys.TF_SERVING)
    w = np.zeros(3)
    for step in range(3):
        w -= 0.1 * linear.gradient(w, 10 * step, 10)
    np.testing.assert_allclose(variable(result.best, "w"), w, rtol=1e-5)
    values = json.loads((tmp_path / "best/best.json").read_text())["checkpoints"][0]["values"]
    x, y = linear.x[:10], linear.y[:10]
    assert values["loss"] == pytest.approx(np.mean((x @ w - y) ** 2), rel=1e-4)
    alone = mox.run(
        linear.input_fn, None, linear.model_fn, run_mode="EVAL", batch_size=50, checkpoint_path=str(tmp_path / "best")
    )
    assert (alone.global_step, alone.checkpoint) == (3, result.best)
    np.testing.assert_allclose(variable(str(tmp_path / "1/variables/variables"), "w"), w, rtol=1e-5)


def test_a_run_that_goes_on_keeps_the_best_of_both(train: Train, linear: Any, tmp_path: Path) -> None:
    for steps, values in ((3, [0.5, 0.8, 0.1]), (5, [0.6, 0.7])):
        result = train(
            model_fn=scripted(linear, values, keep=2), inter_mode="EVAL", max_number_of_steps=steps,
            log_dir=str(tmp_path),
        )  # fmt: skip
    assert listed(tmp_path) == [(2, 0.8), (5, 0.7)]
    assert result.best == str(tmp_path / "best/model.ckpt-2")


def test_what_a_crash_leaves_does_not_count(train: Train, linear: Any, tmp_path: Path) -> None:
    def go(steps: int, values: list[float]) -> None:
        train(
            model_fn=scripted(linear, values, keep=2), inter_mode="EVAL", max_number_of_steps=steps,
            log_dir=str(tmp_path),
        )  # fmt: skip

    go(3, [0.5, 0.8, 0.1])
    best = tmp_path / "best"
    content = json.loads((best / "best.json").read_text())
    content["checkpoints"].insert(0, {"name": "model.ckpt-9", "step": 9, "value": 0.99, "values": {"accuracy": 0.99}})
    (best / "best.json").write_text(json.dumps(content))  # killed before the checkpoint was there
    (best / "model.ckpt-9.data-00000-of-00001.tempstate7").write_text("half")
    go(4, [0.6])
    assert listed(tmp_path) == [(2, 0.8), (4, 0.6)]
    assert not list(best.glob("*tempstate*"))


def test_what_cannot_be_kept(train: Train, linear: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelSpecError, match="BestCheckpointHook needs a folder"):
        train(model_fn=scripted(linear, [0.5]), inter_mode="EVAL", max_number_of_steps=1)
    with pytest.raises(ModelSpecError, match="keep=0"):
        train(model_fn=scripted(linear, [0.5], keep=0), inter_mode="EVAL", log_dir=str(tmp_path))
    common = {"inter_mode": "EVAL", "max_number_of_steps": 1, "log_dir": str(tmp_path)}
    train(model_fn=scripted(linear, [0.5]), **common)
    with pytest.raises(CheckpointError, match=r"best accuracy \(max\), and now the best accuracy \(min\)"):
        train(model_fn=scripted(linear, [0.5], mode="min"), **{**common, "max_number_of_steps": 2})
    (tmp_path / "best/best.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read .*best\.json"):
        train(model_fn=scripted(linear, [0.5]), **{**common, "max_number_of_steps": 2})
