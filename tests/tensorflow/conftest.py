"""Small problems for the executor: their answers can be worked out with NumPy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.dataflow import fix_rng_seed
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.flags import store


@pytest.fixture(autouse=True)
def plain_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No flags but the defaults, no command line, an empty default graph."""
    monkeypatch.setattr("sys.argv", ["script.py"])
    monkeypatch.delenv("TF_CONFIG", raising=False)
    store.clear()
    tf1.reset_default_graph()
    yield
    store.clear()


@pytest.fixture
def drawn_alike(plain_process: None) -> Iterator[None]:
    """The same weights, orders and augmentations each time: what a training comes to is not left to chance."""
    fix_rng_seed(5)
    tf1.set_random_seed(5)
    yield
    fix_rng_seed(None)


class Console(logging.Handler):
    """What TensorFlow's logger printed."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname}:{record.name}:{record.getMessage()}")

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture
def console() -> Iterator[Console]:
    handler = Console()
    logger = logging.getLogger("tensorflow")
    before = logger.level
    logger.setLevel(logging.INFO)  # a server that ran in this process has hushed it
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(before)


@dataclass
class Linear:
    """y = x w, squared error, over rows that come in order and for ever (TRAIN) or once (EVAL, PREDICT)."""

    x: np.ndarray
    y: np.ndarray

    def input_fn(self, mode: str, **kwargs: Any) -> Any:
        dataset = tf1.data.Dataset.from_tensor_slices((self.x, self.y))
        if mode == mox.ModeKeys.TRAIN:
            dataset = dataset.repeat()
        return dataset.make_one_shot_iterator().get_next()

    def finite_input_fn(self, mode: str, **kwargs: Any) -> Any:
        return tf1.data.Dataset.from_tensor_slices((self.x, self.y)).make_one_shot_iterator().get_next()

    def model_fn(self, inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
        x, y = inputs
        w = tf1.get_variable("w", [self.x.shape[1]], initializer=tf1.zeros_initializer())
        predicted = tf.linalg.matvec(x, w)
        loss = tf.reduce_mean(tf.square(predicted - y))
        return mox.ModelSpec(
            loss=loss,
            log_info={"loss": loss, "mean": tf.reduce_mean(predicted)},
            output_info={"x": x, "predicted": predicted},
            export_spec=mox.ExportSpec({"x": x}, {"predicted": predicted}),
        )

    def gradient(self, w: np.ndarray, start: int, rows: int) -> np.ndarray:
        """Gradient of the loss over `rows` rows from `start`, wrapping around."""
        index = np.arange(start, start + rows) % len(self.x)
        x, y = self.x[index].astype(np.float64), self.y[index].astype(np.float64)
        return 2 * x.T @ (x @ w - y) / rows


@pytest.fixture
def linear() -> Linear:
    random = np.random.default_rng(3)
    x = random.normal(size=(50, 3)).astype(np.float32)
    y = (x @ np.array([1.0, -2.0, 0.5]) + 0.1 * random.normal(size=50)).astype(np.float32)
    return Linear(x, y)


@pytest.fixture
def train(linear: Linear) -> Callable[..., mox.RunResult]:
    """Run TRAIN on the linear problem; keyword arguments go to `run`."""

    def call(**kwargs: Any) -> mox.RunResult:
        defaults: dict[str, Any] = {
            "input_fn": linear.input_fn,
            "model_fn": linear.model_fn,
            "optimizer_fn": mox.get_optimizer_fn("sgd", learning_rate=0.1),
            "run_mode": mox.ModeKeys.TRAIN,
            "batch_size": 10,
            "max_number_of_steps": 5,
        }
        return mox.run(**{**defaults, **kwargs})

    return call


@pytest.fixture
def variable() -> Callable[..., np.ndarray]:
    """Read a variable out of a checkpoint."""

    def read(prefix: str | None, name: str) -> np.ndarray:
        value: np.ndarray = tf1.train.NewCheckpointReader(prefix).get_tensor(name)
        return value

    return read


@pytest.fixture
def train_into(train: Callable[..., mox.RunResult], linear: Linear) -> Callable[[str], Callable[..., mox.RunResult]]:
    """`train_into(log_dir)(**kwargs)`: train, or evaluate beside it: what a script of both processes does."""

    def input_fn(mode: str) -> Any:
        return (linear.input_fn if mode == mox.ModeKeys.TRAIN else linear.finite_input_fn)(mode)

    def of(log_dir: str) -> Callable[..., mox.RunResult]:
        return lambda **kwargs: train(**{"input_fn": input_fn, "log_dir": log_dir, "save_model_steps": 2, **kwargs})

    return of


@pytest.fixture
def as_evaluator(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Callable[..., mox.RunResult]], Callable[..., mox.RunResult]]:
    """`as_evaluator(script)(**kwargs)`: run a script as the evaluator of a job."""

    def of(script: Callable[..., mox.RunResult]) -> Callable[..., mox.RunResult]:
        def call(**kwargs: Any) -> mox.RunResult:
            with monkeypatch.context() as patch:
                patch.setenv("MOXSERVE_FLAGS", "--job_name=evaluator")
                return script(**kwargs)

        return call

    return of
