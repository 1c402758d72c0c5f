"""Retraining: features are computed once, kept by content, and train the head as the whole model would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve import file
from moxserve.errors import CheckpointError, ModelSpecError, UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.transfer import store
from moxserve.tensorflow.transfer.distort import distorted
from moxserve.tensorflow.transfer.retrain import RetrainResult, retrain
from moxserve.tensorflow.transfer.store import FeatureStore, key_of

ROWS = 24
X = np.random.default_rng(0).normal(size=(ROWS, 6)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 6, ROWS)
ADAM = mox.get_optimizer_fn("adam", learning_rate=0.01)
SGD = mox.get_optimizer_fn("sgd", learning_rate=0.5)


def input_fn(mode: str) -> Any:
    dataset = tf1.data.Dataset.from_tensor_slices((X, Y))
    return (dataset.shuffle(ROWS).repeat() if mode == "TRAIN" else dataset).make_one_shot_iterator().get_next()


def model(classes: int, width: int = 8) -> Callable[..., mox.ModelSpec]:
    """A trunk with all that training changes, and a head."""

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        (x, y), training = inputs, mode == "TRAIN"
        with tf1.variable_scope("trunk"):
            hidden = tf1.layers.batch_normalization(tf1.layers.dense(x, width, tf.nn.relu), training=training)
            hidden = tf1.layers.dropout(hidden, 0.5, training=training)
        with tf1.variable_scope("head"):
            logits = tf1.layers.dense(hidden, classes)
        tf1.summary.histogram("x", x)
        loss = tf1.losses.sparse_softmax_cross_entropy(y % classes, logits)
        return mox.ModelSpec(
            loss=loss, log_info={"loss": loss, "x": tf.reduce_mean(x)}, output_info={"logits": logits},
            export_spec=mox.ExportSpec({"x": x}, {"logits": logits}),
        )  # fmt: skip

    return model_fn


def pretrain(folder: Path, steps: int = 5) -> str:
    with tf1.Graph().as_default():
        tf1.set_random_seed(7)
        mox.run(input_fn, None, model(2), ADAM, "TRAIN", batch_size=8, log_dir=str(folder), max_number_of_steps=steps)
    return str(folder)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pretrain(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture
def again(tmp_path: Path, pretrained: str) -> Callable[..., RetrainResult]:
    """Retrain the pretrained model for three classes."""

    def call(**kwargs: Any) -> RetrainResult:
        options: dict[str, Any] = {
            "model_fn": model(3), "optimizer_fn": SGD, "checkpoint_path": pretrained, "batch_size": ROWS,
            "log_dir": str(tmp_path / "run"), "bottleneck_dir": str(tmp_path / "features"), "num_samples": ROWS,
            "max_number_of_steps": 4, "input_fn": input_fn,
        }  # fmt: skip
        return retrain(**{**options, **kwargs})

    return call


def values(prefix: str | None) -> dict[str, np.ndarray]:
    reader = tf1.train.NewCheckpointReader(prefix)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


@pytest.mark.slow
def test_the_head_is_trained_as_the_whole_model_would_and_the_trunk_stays(
    again: Any, pretrained: str, tmp_path: Path
) -> None:
    tf1.set_random_seed(3)
    result = again()
    assert result.head == ("head/dense/kernel", "head/dense/bias")
    assert (result.rows, result.computed, result.features) == (ROWS, ROWS, 8)
    assert result.max_abs_error < 1e-5
    trained = values(result.run.checkpoint)
    before = values(tf1.train.latest_checkpoint(pretrained))
    for name in ("trunk/dense/kernel", "trunk/batch_normalization/moving_mean", "trunk/batch_normalization/gamma"):
        np.testing.assert_array_equal(trained[name], before[name])
    # The same in NumPy: the trunk's features, and gradient descent on the head over all rows.
    hidden = np.maximum(X @ before["trunk/dense/kernel"] + before["trunk/dense/bias"], 0)
    norm = {n: before[f"trunk/batch_normalization/{n}"] for n in ("moving_mean", "moving_variance", "gamma", "beta")}
    features = (hidden - norm["moving_mean"]) / np.sqrt(norm["moving_variance"] + 1e-3) * norm["gamma"] + norm["beta"]
    first = values(again(log_dir=str(tmp_path / "none"), max_number_of_steps=1, optimizer_fn=STILL).run.checkpoint)
    weights, bias = first["head/dense/kernel"].astype(np.float64), first["head/dense/bias"].astype(np.float64)
    for _ in range(4):
        logits = features @ weights + bias
        odds = np.exp(logits - logits.max(1, keepdims=True))
        error = (odds / odds.sum(1, keepdims=True) - np.eye(3)[Y % 3]) / ROWS
        weights, bias = weights - 0.5 * features.T @ error, bias - 0.5 * error.sum(0)
    np.testing.assert_allclose(trained["head/dense/kernel"], weights, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trained["head/dense/bias"], bias, rtol=1e-4, atol=1e-5)


STILL = mox.get_optimizer_fn("sgd", learning_rate=0.0)


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_alike")
def test_features_are_reused_until_something_changes(again: Any, tmp_path: Path) -> None:
    first = again(max_number_of_steps=40)
    assert first.run.metrics.keys() == {"loss"}  # what is computed from the images is not told in training
    evaluated = mox.run(input_fn, None, model(3), run_mode="EVAL", batch_size=ROWS, log_dir=str(tmp_path / "run"))
    assert evaluated.metrics["loss"] < 1.0
    kept = X[3].copy()
    X[3] += 1  # one other image
    try:
        assert again(max_number_of_steps=41).computed == 1  # goes on from its own checkpoint, whose trunk is the same
    finally:
        X[3] = kept
    assert again(log_dir=str(tmp_path / "c"), model_fn=model(5), max_number_of_steps=1).computed == 0  # another head
    more = pretrain(tmp_path / "more", 2)
    assert again(log_dir=str(tmp_path / "d"), checkpoint_path=more).computed == ROWS  # other weights


@pytest.mark.slow
def test_more_than_the_last_layer(again: Any, tmp_path: Path) -> None:
    result = again(head=["head", "trunk"], max_number_of_steps=1)
    assert "trunk/batch_normalization/gamma" in result.head
    assert result.features == 6  # the input itself


@pytest.mark.slow
def test_distortions_are_told_and_cache_nothing(again: Any, pretrained: str, tmp_path: Path, console: Any) -> None:
    result = again(distortions=lambda x: x + tf.random.normal(tf.shape(x)), batch_size=8)
    assert (result.rows, result.head) == (0, ("head/dense/kernel", "head/dense/bias"))
    assert "are not cached: distortions" in console.text
    assert not (tmp_path / "features").exists()
    before = values(tf1.train.latest_checkpoint(pretrained))
    np.testing.assert_array_equal(
        values(result.run.checkpoint)["trunk/batch_normalization/moving_mean"],
        before["trunk/batch_normalization/moving_mean"],
    )


@pytest.mark.slow
def test_what_is_wrong_is_told(again: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="matches none of the model's trainable variables"):
        again(head=["haed"])
    with pytest.raises(CheckpointError, match="no trained network"):
        again(checkpoint_path=str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="does not fit: trunk/dense/kernel"):
        again(model_fn=model(3, width=9))

    def no_loss(inputs: list[Any], mode: str) -> mox.ModelSpec:
        return mox.ModelSpec(log_info={"w": tf.reduce_sum(tf1.get_variable("w", []) * inputs[0])})

    with pytest.raises(ModelSpecError, match="no ModelSpec with a loss in EVAL"):
        again(model_fn=no_loss)

    def leaking(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = model(3)(inputs, mode)
        return mox.ModelSpec(loss=spec.loss + tf.reduce_mean(inputs[0]))

    with pytest.raises(ModelSpecError, match="is no feature of a row"):
        again(model_fn=leaking)


# -- the store


def rows(count: int, first: int = 0) -> tuple[list[bytes], list[np.ndarray]]:
    numbers = np.arange(first, first + count, dtype=np.float32)
    return [key_of(number) for number in numbers], [numbers[:, None] * [1, 2], numbers]


def test_a_store_keeps_rows_by_their_keys(tmp_path: Path) -> None:
    kept = FeatureStore(str(tmp_path), "trunk", {"of": "a test"})
    for first in (0, 3):
        kept.add(*rows(5, first))
        kept.flush()
    again = FeatureStore(str(tmp_path), "trunk", {})
    assert len(again) == 8
    keys, features = rows(8)
    for found, expected in zip(again.take(keys[::-1]), features, strict=True):
        np.testing.assert_array_equal(found, expected[::-1])
    assert len(FeatureStore(str(tmp_path), "another", {})) == 0


def test_a_damaged_file_is_left_out(tmp_path: Path, console: Any) -> None:
    kept = FeatureStore(str(tmp_path), "trunk", {})
    for first in (0, 10, 20, 30):
        kept.add(*rows(3, first))
        kept.flush()
    files = sorted((tmp_path / "trunk").glob("*.npz"))
    files[0].write_bytes(files[0].read_bytes()[:-20])
    files[1].write_bytes(b"")
    files[3].rename(files[2])  # the content of another
    assert len(FeatureStore(str(tmp_path), "trunk", {})) == 0
    assert console.text.count("is left out") == 3


def test_keys_tell_type_and_shape_apart() -> None:
    zeros = [np.zeros([2, 3], np.uint8), np.zeros([3, 2], np.uint8), np.zeros([6], np.int8), np.zeros([2, 3], np.int8)]
    assert len({key_of(array) for array in zeros}) == 4


@pytest.mark.slow
def test_what_a_broken_run_computed_is_not_computed_again(again: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []

    def broken(images: np.ndarray) -> np.ndarray:
        batches.append(len(images))
        if len(batches) > 2:
            raise RuntimeError("a mishap")
        return images

    def interrupted(mode: str) -> Any:
        dataset = tf1.data.Dataset.from_tensor_slices((X, Y)).batch(8)
        x, y = dataset.make_one_shot_iterator().get_next()
        x = tf.ensure_shape(tf.numpy_function(broken, [x], tf.float32), [None, 6])
        return x, y

    monkeypatch.setattr(store, "_ROWS_A_FILE", 8)
    with pytest.raises(tf.errors.UnknownError, match="a mishap"):
        again(input_fn=interrupted, auto_batch=False, batch_size=8)
    assert again(max_number_of_steps=1).computed == ROWS - 16


# -- distortions


def test_distortions_keep_shape_and_type_and_change_each_image() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8).repeat(40, 0)
    with tf1.Graph().as_default(), tf1.Session() as session:
        for options in (
            {"flip_left_right": True}, {"random_crop": 10}, {"random_scale": 20}, {"random_brightness": 30},
        ):  # fmt: skip
            made = distorted(**options)(tf.constant(images))  # type: ignore[arg-type]
            assert made.shape == images.shape
            found = session.run(made)
            assert found.dtype == np.uint8
            assert len({image.tobytes() for image in found}) > 1
        flipped = session.run(distorted(flip_left_right=True)(tf.constant(images)))
        assert {image.tobytes() for image in flipped} == {images[0].tobytes(), images[0][:, ::-1].tobytes()}
    with pytest.raises(UsageError, match="random_brightness=200"):
        distorted(random_brightness=200)


@pytest.mark.slow
def test_the_network_may_be_in_a_store_the_folders_may_not(
    again: Callable[..., RetrainResult], store: Any, pretrained: str, tmp_path: Path
) -> None:
    url = f"{store.base}/network"
    file.copy_parallel(pretrained, url)
    there = again(checkpoint_path=url)
    here = again(log_dir=str(tmp_path / "here"))
    assert (there.computed, here.computed) == (ROWS, 0)  # the same weights, so the same features
    for name in ("log_dir", "bottleneck_dir"):
        with pytest.raises(UsageError, match=rf"{name}='s3://.*': expected a path of this machine"):
            again(**{name: f"{store.base}/{name}"})
