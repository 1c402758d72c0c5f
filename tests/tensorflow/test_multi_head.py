"""Several heads in one model: the weighted sum is trained, and each head is told and exported apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf, tf1


def heads_of(linear: Any, weights: tuple[float, float]) -> Any:
    """Two linear heads on the rows of the linear problem: its target, and the sum of its inputs."""

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        x, y = inputs
        heads = []
        for name, target, weight in (("target", y, weights[0]), ("sum", tf.reduce_sum(x, 1), weights[1])):
            w = tf1.get_variable(f"{name}/w", [3], initializer=tf1.zeros_initializer())
            found = tf.linalg.matvec(x, w)
            error = tf.reduce_mean(tf.abs(found - target))
            loss = tf.reduce_mean(tf.square(found - target))
            heads.append(mox.Head(name, loss, weight, {"error": error}, {"value": found}))
        return mox.multi_head(heads, {"x": x}, penalty=tf.constant(2.0), default="target")

    return model_fn


@pytest.mark.slow
def test_heads_are_trained_by_their_weights_and_told_apart(train: Any, linear: Any, tmp_path: Path) -> None:
    model_fn = heads_of(linear, (1.0, 0.25))
    result = train(model_fn=model_fn, batch_size=50, log_dir=str(tmp_path), max_number_of_steps=3,
                   export_model=mox.ExportKeys.TF_SERVING)  # fmt: skip
    assert set(result.metrics) == {"loss", "target/loss", "target/error", "sum/loss", "sum/error"}
    x, targets = linear.x.astype(np.float64), {"target": linear.y, "sum": linear.x.sum(1)}
    reader = tf1.train.NewCheckpointReader(result.checkpoint)
    losses = {}
    for name, weight in (("target", 1.0), ("sum", 0.25)):
        w = np.zeros(3)
        for _ in range(3):
            w -= 0.1 * weight * 2 * x.T @ (x @ w - targets[name]) / 50
        np.testing.assert_allclose(reader.get_tensor(f"{name}/w"), w, rtol=1e-5)
        losses[name] = np.mean((x @ w - targets[name]) ** 2)
    evaluated = mox.run(linear.finite_input_fn, None, model_fn, run_mode="EVAL", batch_size=50, log_dir=str(tmp_path))
    assert evaluated.metrics["sum/loss"] == pytest.approx(losses["sum"], rel=1e-5)
    assert evaluated.metrics["loss"] == pytest.approx(losses["target"] + 0.25 * losses["sum"] + 2, rel=1e-5)
    signatures = {name: list(s.outputs) for name, s in result.export.signatures.items()}
    assert signatures["sum"] == ["value"]
    assert signatures["serving_default"] == ["value"]
    assert {"target", "sum"} < set(signatures)


def test_what_is_wrong_is_told() -> None:
    with tf1.Graph().as_default():
        loss = tf.constant(1.0)
        for name in ("", "a/b", 3):
            with pytest.raises(ModelSpecError, match="expected a name without"):
                mox.Head(name, loss)  # type: ignore[arg-type]
        with pytest.raises(ModelSpecError, match="weight=-1"):
            mox.Head("a", loss, -1)
        with pytest.raises(ModelSpecError, match="has the name 'loss'"):
            mox.Head("a", loss, metrics={"loss": loss})
        with pytest.raises(ModelSpecError, match="no head"):
            mox.multi_head([])
        with pytest.raises(ModelSpecError, match="two heads named 'a'"):
            mox.multi_head([mox.Head("a", loss), mox.Head("a", loss)])
        with pytest.raises(ModelSpecError, match="none of the heads a"):
            mox.multi_head([mox.Head("a", loss)], default="b")
