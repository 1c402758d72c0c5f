"""Time of one training step: `mox.run` against a bare `sess.run(train_op)` loop, the raw callable, and `model.fit`.

The contenders train the same model (tiny: 16-32-32-4 dense; lenet: two convolutions and two dense layers on 28x28x1) on
the same rows, batch 32, momentum SGD, and take turns in each round. The best round of each counts, because other work
on the machine only ever adds time; CPU time is that of the whole process. Start-up is left out: `mox.run` reports the
time from its second step on, the others are warmed up. `mox.run` logs every 100 steps, the bare loops log nothing.
`model.fit` runs in processes of its own, taking its turn with the others: once with Keras 3 (the default of TensorFlow
2.21) and once with Keras 2 (tf_keras), one step per call, which is its default.

    python benchmarks/training_step.py [--rounds 9] [--steps 2000] [--models tiny,lenet] [--no-keras] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

BATCH = 32
SHAPES = {"tiny": (16,), "lenet": (28, 28, 1)}
CLASSES = {"tiny": 4, "lenet": 10}
STEPS_OF = {"tiny": 1.0, "lenet": 0.05}  # a step of lenet is that much longer
LIMITS = {("tiny", "sess.run loop"): 1.10, ("lenet", "sess.run loop"): 1.02}

Figures = dict[str, float]
Contender = Callable[[], Figures]


def data(model: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and labels that every contender trains on."""
    random = np.random.default_rng(0)
    x = random.random((256, *SHAPES[model]), dtype=np.float32)
    return x, random.integers(0, CLASSES[model], 256).astype(np.int64)


def timed(function: Callable[[], None], steps: int) -> Figures:
    """Run `steps` steps; microseconds a step of wall and CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return {
        "wall": (time.perf_counter() - wall) / steps * 1e6,
        "cpu": (time.process_time() - cpu) / steps * 1e6,
    }


class GraphContenders:
    """`mox.run`, the bare loop and the raw callable, on one model in this process."""

    def __init__(self, model: str, steps: int) -> None:
        import moxserve.tensorflow as mox
        from moxserve.tensorflow.executor.env import tf, tf1

        tf1.logging.set_verbosity(tf1.logging.ERROR)
        self.mox, self.tf, self.tf1 = mox, tf, tf1
        self.model, self.steps = model, steps
        self.optimizer_fn = mox.get_optimizer_fn("momentum", learning_rate=0.01, momentum=0.9)
        self._open_bare()

    def input_fn(self, mode: str) -> Any:
        """The same rows for ever, in ready batches."""
        dataset = self.tf.data.Dataset.from_tensor_slices(data(self.model)).repeat()
        return self.tf1.data.make_one_shot_iterator(dataset.batch(BATCH, drop_remainder=True).prefetch(2)).get_next()

    def model_fn(self, inputs: list[Any], mode: str) -> Any:
        """The model, the same in every mode."""
        images, labels = inputs
        losses = self.tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=self._logits(images))
        loss = self.tf.reduce_mean(losses)
        return self.mox.ModelSpec(loss=loss, log_info={"loss": loss})

    def _logits(self, h: Any) -> Any:
        layers, relu = self.tf1.layers, self.tf.nn.relu
        if self.model == "tiny":
            return layers.dense(layers.dense(layers.dense(h, 32, relu), 32, relu), 4)
        for filters in (32, 64):
            h = layers.max_pooling2d(layers.conv2d(h, filters, 5, padding="same", activation=relu), 2, 2)
        return layers.dense(layers.dense(layers.flatten(h), 256, relu), 10)

    def _open_bare(self) -> None:
        """Build what `mox.run` builds, and open a session over it."""
        from moxserve.tensorflow.executor.branch import build_branch
        from moxserve.tensorflow.executor.cluster import Topology
        from moxserve.tensorflow.executor.devices import devices_of
        from moxserve.tensorflow.executor.inputs import build_inputs
        from moxserve.tensorflow.executor.train_op import TrainOptions, build_train_op
        from moxserve.tensorflow.executor.workers.base import Workers

        with self.tf1.Graph().as_default():
            step = self.tf1.train.get_or_create_global_step()
            source = build_inputs(self.input_fn, "TRAIN", BATCH, auto_batch=False)
            topology = Topology()
            devices = devices_of(topology)
            branch = build_branch(self.model_fn, "TRAIN", [source.tensors], devices.places)
            workers = Workers(topology, devices)
            self.train_op = build_train_op(branch, self.optimizer_fn, step, TrainOptions(), workers)
            initial = self.tf1.global_variables_initializer()
            self.session = self.tf1.Session()
        self.session.run(initial)
        source.start(self.session)
        from moxserve.tensorflow.executor.stepper import Fetcher

        self.raw = Fetcher(self.session).callable((), (), (self.train_op.name,))
        for _ in range(20):
            self.session.run(self.train_op)
            self.raw()

    def run_mox(self) -> Figures:
        """A whole run, of which it reports the steady state."""
        result = self.mox.run(
            input_fn=self.input_fn,
            model_fn=self.model_fn,
            optimizer_fn=self.optimizer_fn,
            run_mode=self.mox.ModeKeys.TRAIN,
            batch_size=BATCH,
            auto_batch=False,
            max_number_of_steps=self.steps,
            log_every_n_steps=100,
        )
        return {"wall": result.step_s * 1e6, "cpu": result.step_cpu_s * 1e6}

    def run_bare(self) -> Figures:
        """What users of TensorFlow 1 wrote."""

        def loop() -> None:
            for _ in range(self.steps):
                self.session.run(self.train_op)

        return timed(loop, self.steps)

    def run_raw(self) -> Figures:
        """The least that a step can cost in a session."""

        def loop() -> None:
            for _ in range(self.steps):
                self.raw()

        return timed(loop, self.steps)


class KerasContender:
    """`model.fit` in a process of its own, which waits for its turns."""

    def __init__(self, model: str, steps: int, legacy: bool) -> None:
        environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1" if legacy else "0"}
        command = [sys.executable, __file__, "--keras-worker", "--models", model, "--steps", str(steps)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.version = self._answer()["version"]

    def _answer(self) -> Any:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise SystemExit("the Keras process ended early")
        return json.loads(line)

    def __call__(self) -> Figures:
        """Take a turn."""
        if self._process.stdin is None:
            raise SystemExit("the Keras process takes no input")
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        figures: Figures = self._answer()
        return figures

    def close(self) -> None:
        """End the process."""
        self._process.communicate("")


def keras_worker(model: str, steps: int) -> None:
    """Train with `model.fit` once per line of standard input; answer with one JSON object a line."""
    import tensorflow as tf

    keras: Any = tf.keras
    layers = keras.layers
    if model == "tiny":
        stack = [layers.Dense(32, "relu"), layers.Dense(32, "relu"), layers.Dense(4)]
    else:
        stack = []
        for filters in (32, 64):
            stack += [layers.Conv2D(filters, 5, padding="same", activation="relu"), layers.MaxPooling2D(2, 2)]
        stack += [layers.Flatten(), layers.Dense(256, "relu"), layers.Dense(10)]
    net = keras.Sequential([layers.Input(SHAPES[model]), *stack])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    rows = tf.data.Dataset.from_tensor_slices(data(model)).repeat().batch(BATCH, drop_remainder=True).prefetch(2)
    net.fit(rows, steps_per_epoch=20, epochs=2, verbose=0)
    package = "tf_keras" if os.environ["TF_USE_LEGACY_KERAS"] == "1" else "keras"
    version = importlib.metadata.version(package)
    print(json.dumps({"version": version}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(timed(lambda: net.fit(rows, steps_per_epoch=steps, verbose=0), steps)), flush=True)


def measure(model: str, steps: int, rounds: int, with_keras: bool) -> dict[str, list[Figures]]:
    """Let all contenders take turns; the first round is thrown away."""
    graph = GraphContenders(model, steps)
    contenders: dict[str, Contender] = {
        "mox.run": graph.run_mox,
        "sess.run loop": graph.run_bare,
        "raw callable": graph.run_raw,
    }
    keras = [KerasContender(model, steps, legacy) for legacy in (False, True)] if with_keras else []
    contenders.update({f"model.fit (Keras {k.version})": k for k in keras})
    figures: dict[str, list[Figures]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        names = list(contenders)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            reading = contenders[name]()
            if number:
                figures[name].append(reading)
    for contender in keras:
        contender.close()
    return figures


def report(model: str, steps: int, figures: dict[str, list[Figures]]) -> list[dict[str, Any]]:
    """Print the table of one model: the best round of each contender, and how `mox.run` compares with it."""
    best = {n: {clock: min(r[clock] for r in rs) for clock in ("wall", "cpu")} for n, rs in figures.items()}
    rows = []
    print(f"\n{model}: batch {BATCH}, {steps} steps x {len(figures['mox.run'])} rounds, best round of each")
    print(f"{'':28s}{'wall us/step':>14s}{'CPU us/step':>14s}{'mox.run / wall':>16s}{'mox.run / CPU':>15s}")
    for name, figure in best.items():
        ratio = {clock: best["mox.run"][clock] / figure[clock] for clock in figure}
        limit = LIMITS.get((model, name), 1.0 if name.startswith("model.fit") else None)
        verdict = "" if limit is None else f"  aim <= {limit:.2f}: {'met' if ratio['wall'] <= limit else 'MISSED'}"
        print(f"{name:28s}{figure['wall']:14.1f}{figure['cpu']:14.1f}", end="")
        print(f"{ratio['wall']:16.3f}{ratio['cpu']:15.3f}{verdict}", flush=True)
        rows.append(
            {"model": model, "contender": name, **figure, "ratio_wall": ratio["wall"], "ratio_cpu": ratio["cpu"]}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2000, help="steps of tiny in one round; lenet makes a twentieth")
    parser.add_argument("--models", default="tiny,lenet")
    parser.add_argument("--no-keras", action="store_true")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--keras-worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.keras_worker:
        keras_worker(options.models, options.steps)
        return
    rows: list[dict[str, Any]] = []
    for model in options.models.split(","):
        steps = max(10, int(options.steps * STEPS_OF[model]))
        rows += report(model, steps, measure(model, steps, options.rounds, not options.no_keras))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as f:
            json.dump(rows, f, indent=2)


if __name__ == "__main__":
    main()
