"""The script that every process of the tests' clusters runs: trainings one after the other, as `--plan` says.

    python job.py --job_name=worker --task_index=0 --ps_hosts=... --worker_hosts=... --plan='[{"optimizer": "adam"}]'

Each worker takes its rows of the large batch that one device would take, so that the weights can be compared.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

import moxserve.tensorflow as mox
from moxserve.dataflow.order import EpochOrder
from moxserve.tensorflow.datasets.base import ordered_rows
from moxserve.tensorflow.executor.phases import Phase
from moxserve.tensorflow.executor.variables import TowerContext

ROWS = 512
_random = np.random.RandomState(3)
X = _random.randn(ROWS, 6).astype(np.float32)
Y = (X @ _random.randn(6, 3)).argmax(1).astype(np.int32)
FIRST, SECOND = np.random.RandomState(1).randn(6, 5), np.random.RandomState(2).randn(5, 3)


@dataclass(frozen=True)
class Training:
    """One run.

    Attributes:
        folder: the log_dir.
        optimizer: sgd, momentum or adam; or `gathered`, sgd that the workers meet for at every second step; or
            `compressed`, sgd whose gradients go elementwise.
        mode: TRAIN or EVAL.
        synchronous: --sync_replicas.
        towers: --num_gpus.
        steps: max_number_of_steps; 0 for the end of the input.
        batches: how many batches the first worker's input has, the second has one fewer; 0 for ever.
        pause: seconds after each step.
        gate: a file without which nobody makes another step once the global step is 80; empty for none.
        save_steps: between checkpoints; 0 for the end only.
        rows: of a batch of a tower.
        start: the checkpoint_path.
        until: global step up to which a model without the scale of the outputs is trained before; 0 for none.
    """

    folder: str
    optimizer: str = "sgd"
    mode: str = "TRAIN"
    synchronous: bool = True
    towers: int = 1
    steps: int = 20
    batches: int = 0
    pause: float = 0.0
    gate: str = ""
    save_steps: int = 0
    rows: int = 8
    start: str | None = None
    until: int = 0

    def rows_of(self, worker: int, workers: int) -> np.ndarray:
        """The rows of a worker, in the order in which it takes them."""
        steps = np.arange(ROWS).reshape(-1, workers * self.towers, self.rows)
        return steps[:, worker * self.towers : (worker + 1) * self.towers].reshape(-1)

    def input_fn(self, mode: str, **kwargs: Any) -> Any:
        """Rows in order."""
        if mode != mox.ModeKeys.TRAIN:
            return tf.data.Dataset.from_tensor_slices((X, Y))
        worker, workers = mox.get_flag("task_index"), len(mox.get_flag("worker_hosts").split(","))
        order = self.rows_of(worker, workers)
        if self.batches:
            return tf.data.Dataset.from_tensor_slices((X[order], Y[order])).take((self.batches - worker) * self.rows)
        x, y = tf.constant(X[order]), tf.constant(Y[order])
        numbers = ordered_rows(EpochOrder(len(order), shuffle=False), None)  # these go on where they were
        return numbers.map(lambda number: (tf.gather(x, number), tf.gather(y, number)))

    def model_fn(self, inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
        """Two layers."""
        x, y = inputs
        hidden = tf.layers.dense(x, 5, tf.nn.tanh, kernel_initializer=tf.constant_initializer(FIRST))
        logits = tf.layers.dense(hidden, 3, kernel_initializer=tf.constant_initializer(SECOND))
        if kwargs.get("scaled"):
            scale = tf.get_variable("scaling/scale", [3], initializer=tf.constant_initializer(2), trainable=False)
            if (context := TowerContext.current()) is not None:
                context.make_optional(scale)  # what was trained before has no such variable
            logits *= scale
        loss = tf.losses.sparse_softmax_cross_entropy(y, logits)
        return mox.ModelSpec(
            loss=loss, log_info={"loss": loss}, hooks=[Pause(self.pause, self.gate)] if self.pause else []
        )

    def optimizer_fn(self) -> Any:
        """As `optimizer` says."""
        if self.optimizer == "gathered":
            wrapper = mox.get_optimizer_wrapper_fn(
                "batch_gradients", tf.train.GradientDescentOptimizer(0.1), num_batches=2, sync_on_apply=True
            )
            return wrapper()
        if self.optimizer == "compressed":
            sgd = tf.train.GradientDescentOptimizer(0.1)
            return mox.get_optimizer_wrapper_fn("dgc", sgd, sparsity=0.0, momentum=0.0)()
        made = {
            "sgd": lambda: tf.train.GradientDescentOptimizer(0.1),
            "momentum": lambda: tf.train.MomentumOptimizer(0.1, 0.9),
            "adam": lambda: tf.train.AdamOptimizer(0.01),
        }
        return made[self.optimizer]()

    def run(self) -> mox.RunResult:
        """Call `mox.run`."""
        mox.set_flag("sync_replicas", self.synchronous)
        mox.set_flag("num_gpus", self.towers)
        return mox.run(
            self.input_fn,
            model_fn=Phased(self) if self.until else self.model_fn,
            optimizer_fn=self.optimizer_fn,
            run_mode=getattr(mox.ModeKeys, self.mode),
            batch_size=self.rows,
            max_number_of_steps=self.steps,
            log_dir=self.folder,
            checkpoint_path=self.start,
            save_model_steps=self.save_steps or None,
            save_summary_steps=0,
            log_every_n_steps=10,
        )


class Phased:
    """A model_fn that has another one trained before it, of other variables.

    Args:
        training: whose model it is.
    """

    def __init__(self, training: Training) -> None:
        self._training = training

    def __call__(self, inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
        """The model, with a scale."""
        return self._training.model_fn(inputs, mode, scaled=True)

    def phases(self) -> list[Phase]:
        """The model without."""
        return [Phase(self._training.model_fn, self._training.until, "scaling")]


class Pause(tf.train.SessionRunHook):
    """Makes steps slow enough to kill somebody between them."""

    def __init__(self, seconds: float, gate: str) -> None:
        self._seconds, self._gate = seconds, gate

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Wait."""
        time.sleep(self._seconds)
        if self._gate and run_context.session.run(tf.train.get_global_step(run_context.session.graph)) >= 80:
            while not os.path.exists(self._gate):
                time.sleep(self._seconds)


def main() -> None:
    """Run what `--plan` says, and print each result as a line of JSON."""
    plan = next(word.split("=", 1)[1] for word in sys.argv if word.startswith("--plan="))
    for number, entry in enumerate(json.loads(plan)):
        result = asdict(Training(**entry).run())
        told = {
            k: result[k] for k in ("stop_reason", "start_step", "global_step", "local_steps", "checkpoint", "metrics")
        }
        sys.stdout.write(f"RESULT {number} {json.dumps(told)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
