"""Exact resume: an interrupted training ends with the weights of one that was not, bit for bit."""

from __future__ import annotations

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
from PIL import Image

import moxserve.tensorflow as mox
from moxserve.errors import InterruptedRunError, UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.flags import store

X = np.random.default_rng(0).normal(size=(57, 6)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, 57)
Weights = dict[str, np.ndarray]


def samples(mode: str) -> Any:
    """Shuffled rows for ever, each disturbed at random in the dataset, in parallel, and outside of it."""
    dataset = tf1.data.Dataset.from_tensor_slices((X, Y)).shuffle(20).repeat()
    dataset = dataset.map(lambda x, y: (x + tf.random.normal([6], seed=5), y), num_parallel_calls=4)
    x, y = dataset.make_one_shot_iterator().get_next()
    return x + tf.random.uniform([6]), y


def batches(mode: str) -> Any:
    """Ready batches, disturbed in and outside of the dataset."""
    dataset = tf1.data.Dataset.from_tensor_slices((X, Y)).shuffle(20).repeat()
    dataset = dataset.map(lambda x, y: (x + tf.random.normal([6], seed=5), y)).batch(8, drop_remainder=True)
    x, y = dataset.make_one_shot_iterator().get_next()
    return x + tf.random.uniform([8, 6]), y


def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
    """Dropout of both kinds, noise in a loop, a shuffle, and an initial value that is drawn outside of a function."""
    x, y = inputs
    hidden = tf1.layers.dropout(tf1.layers.dense(x, 16, tf.nn.relu), 0.5, training=True)
    hidden = tf.keras.layers.Dropout(0.3)(hidden, training=True)
    _, hidden = tf.while_loop(
        lambda i, _: i < 2, lambda i, h: (i + 1, h + 0.1 * tf.random.normal(tf.shape(h))), [0, hidden]
    )
    hidden += tf1.random_shuffle(hidden)
    logits = hidden @ tf.Variable(tf.random.truncated_normal([16, 3]), name="last")
    loss = tf1.losses.sparse_softmax_cross_entropy(y, logits)
    return mox.ModelSpec(loss=loss, log_info={"loss": loss, "row": x[0, 0]})


def train(log_dir: Path, steps: int, input_fn: Callable[..., Any] = samples, **kwargs: Any) -> mox.RunResult:
    return mox.run(
        input_fn, None, model_fn, mox.get_optimizer_fn("adam", learning_rate=0.01), "TRAIN", batch_size=8,
        auto_batch=input_fn is not batches, log_dir=str(log_dir), max_number_of_steps=steps, **kwargs,
    )  # fmt: skip


def weights(result: mox.RunResult | Path) -> Weights:
    prefix = str(result.checkpoint) if isinstance(result, mox.RunResult) else tf1.train.latest_checkpoint(str(result))
    reader = tf1.train.NewCheckpointReader(prefix)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def differences(one: Weights, other: Weights) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if one[name].tobytes() != other[name].tobytes()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """What 20 steps in one go end with."""
    mox.set_flag("deterministic", True)
    try:
        return weights(train(tmp_path_factory.mktemp("whole"), 20))
    finally:
        store.clear()


@pytest.mark.slow
def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path, whole: Weights) -> None:
    mox.set_flag("deterministic", True)
    train(tmp_path, 7, log_every_n_steps=0)
    assert differences(whole, weights(train(tmp_path, 20, save_summary_steps=3))) == []


@pytest.mark.slow
def test_images_without_any_seed_are_augmented_as_they_would_have_been(tmp_path: Path) -> None:
    mox.set_flag("deterministic", True)
    for number in range(9):
        path = tmp_path / f"raw/{number % 3}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (12, 12, 3), np.uint8)).save(path)
    metadata = mox.ImageClassificationRawMetadata(str(tmp_path / "raw"))
    augment = mox.get_data_augmentation_fn("cifarnet", "TRAIN", output_height=8, output_width=8)

    def images(mode: str) -> Any:
        dataset = mox.ImageClassificationRawDataset(metadata, augmentation_fn=augment)
        image, label = dataset.get(["image", "label"])
        return tf.reshape(image + augment(image), [192]), label

    whole = weights(train(tmp_path / "whole", 6, images))
    train(tmp_path / "parts", 3, images)
    assert differences(whole, weights(train(tmp_path / "parts", 6, images))) == []


@pytest.mark.slow
def test_towers_draw_apart_and_go_on_where_they_were(tmp_path: Path) -> None:
    mox.set_flag("deterministic", True)
    mox.set_flag("num_gpus", 2)
    whole = weights(train(tmp_path / "whole", 8, batches))
    train(tmp_path / "parts", 5, batches)
    assert differences(whole, weights(train(tmp_path / "parts", 8, batches))) == []


@pytest.mark.slow
def test_without_the_flag_dropout_begins_anew(tmp_path: Path) -> None:
    """What the flag is for: without it the same test fails."""
    tf1.set_random_seed(1)
    whole = weights(train(tmp_path / "whole", 6))
    train(tmp_path / "parts", 3)
    assert "last" in differences(whole, weights(train(tmp_path / "parts", 6)))


@pytest.mark.slow
def test_the_seed_counts_and_steps_draw_anew(tmp_path: Path) -> None:
    mox.set_flag("deterministic", True)
    drawn: dict[int, list[float]] = {}

    def still(inputs: list[Any], mode: str) -> mox.ModelSpec:
        w = tf1.get_variable("w", [])
        noise = tf.random.normal([])
        hook = Note(noise, drawn.setdefault(seed, []))
        return mox.ModelSpec(loss=w + 0 * noise, hooks=[hook])

    class Note(tf1.train.SessionRunHook):  # type: ignore[misc]
        def __init__(self, tensor: Any, values: list[float]) -> None:
            self.tensor, self.values = tensor, values

        def before_run(self, run_context: Any) -> Any:
            return tf1.train.SessionRunArgs(self.tensor)

        def after_run(self, run_context: Any, run_values: Any) -> None:
            self.values.append(float(run_values.results))

    for seed in (1, 2):
        tf1.set_random_seed(seed)
        mox.run(samples, None, still, mox.get_optimizer_fn("sgd", learning_rate=0.0), "TRAIN", batch_size=2,
                max_number_of_steps=50)  # fmt: skip
    assert len({*drawn[1], *drawn[2]}) == 100
    assert abs(np.mean(drawn[1])) < 0.5
    assert 0.7 < np.std(drawn[1]) < 1.3


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "terminate", "error"])
def test_a_training_that_was_broken_off_ends_with_the_same_weights(tmp_path: Path, how: str, whole: Weights) -> None:
    mox.set_flag("deterministic", True)
    broken = tmp_path / "broken"
    if how == "kill":
        kill_after(broken, 10)
    else:
        with pytest.raises(InterruptedRunError if how == "terminate" else RuntimeError):
            train(broken, 20, fetch_strategy_fn=breaker(how), save_model_steps=10)
    assert differences(whole, weights(train(broken, 20, save_model_steps=10))) == []


def breaker(how: str) -> Callable[[int], bool]:
    """Break the run off in its 13th step; the checkpoint before is that of step 10 where it cannot save."""

    def wanted(step: int) -> bool:
        if step == 12 and how == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        elif step == 12:
            raise RuntimeError("a mishap")
        return False

    return wanted


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[1])
import test_resume, moxserve.tensorflow as mox
mox.set_flag("deterministic", True)
sys.argv[:] = sys.argv[:1] + sys.argv[2:]
test_resume.train(sys.argv[1], 20, save_model_steps=10, fetch_strategy_fn=lambda step: step > 12 and time.sleep(600))
"""


def kill_after(log_dir: Path, step: int) -> None:
    """Run the training in a process of its own, and kill it when it has saved a step and is some steps further."""
    here = os.path.dirname(__file__)
    process = subprocess.Popen([sys.executable, "-c", KILLED, here, str(log_dir)])
    try:
        end = time.monotonic() + 240
        while not (log_dir / "checkpoint").exists() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.05)
        time.sleep(0.5)
    finally:
        process.kill()
        process.wait()
    assert tf1.train.latest_checkpoint(str(log_dir)) == str(log_dir / f"model.ckpt-{step}")


def test_queues_are_refused(tmp_path: Path) -> None:
    mox.set_flag("deterministic", True)

    def queued(mode: str) -> Any:
        return tf1.train.batch([tf.random.normal([6]), tf.constant(1, tf.int64)], 4)

    with pytest.raises(UsageError, match="uses queues of"):
        train(tmp_path, 1, queued)


@pytest.mark.slow
def test_what_cannot_be_repeated_is_named(tmp_path: Path, console: Any) -> None:
    mox.set_flag("deterministic", True)

    def sampled(inputs: list[Any], mode: str) -> mox.ModelSpec:
        w = tf1.get_variable("w", [2], initializer=tf1.truncated_normal_initializer())
        noise = tf.function(lambda: tf.random.normal([]), autograph=False)()
        drawn, _, _ = tf.random.uniform_candidate_sampler([[0]], 1, 2, True, 5, name="candidates")
        return mox.ModelSpec(loss=tf.reduce_sum(w) + 0 * noise + tf.cast(drawn[0], tf.float32))

    mox.run(samples, None, sampled, mox.get_optimizer_fn("sgd", learning_rate=0.1), "TRAIN", batch_size=4,
            max_number_of_steps=1)  # fmt: skip
    assert [line for line in console.lines if "draws from a state that is lost" in line and "candidates" in line]
    assert "truncated_normal" not in console.text
    assert "lambda" in console.text
