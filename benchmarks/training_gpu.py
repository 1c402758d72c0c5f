"""Images per second of resnet_v1_50 in training: `mox.run`, a hand-written loop, and Keras' `model.fit`.

The images are one batch of random pixels, repeated by `tf.data`, so that no input is measured; momentum SGD, softmax
cross entropy, updates of batch norms. float32, and half precision: `use_fp16` of `mox.run`, a getter that casts
variables in the loop, the policy `mixed_float16` in Keras. Ours is built with `keras=True`, which puts the strides
where Keras has them. Keras runs in a process of its own; all take turns.

    python benchmarks/training_gpu.py [--batch 64] [--size 224] [--steps 50] [--rounds 3] [--on-cpu]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

CLASSES = 1000
SCALE = 128.0
WARM_UP = 5
AIMS = {"loop": 1.0, "keras": 1.1}


def batch_of(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Make the images and their classes."""
    shape = (options.batch, options.size, options.size, 3)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32), np.arange(options.batch) % CLASSES


def logits_of(images: Any) -> Any:
    """Build the network, its batch norms in training."""
    from importlib import import_module

    from moxserve.tensorflow.nets.base import Build
    from moxserve.tensorflow.nets.catalog import network

    row = network("resnet_v1_50")
    module, _, function = row.target.partition(":")
    build = Build(num_classes=CLASSES, training=True, fused=True)
    logits, _ = getattr(import_module(module), function)(images, build, **{**row.arguments, "keras": True})
    return logits


def run_mox(options: argparse.Namespace, half: bool) -> float:
    """Train with `mox.run`; return seconds a step."""
    import moxserve.tensorflow as mox
    from moxserve.tensorflow.executor.env import tf, tf1

    def input_fn(_mode: str) -> Any:
        return tf1.data.make_one_shot_iterator(
            tf.data.Dataset.from_tensors(batch_of(options)).repeat().prefetch(2)
        ).get_next()

    def model_fn(inputs: list[Any], _mode: str) -> Any:
        images, labels = inputs
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=labels, logits=tf.cast(logits_of(images), tf.float32)
        )
        loss = tf.reduce_mean(losses)
        return mox.ModelSpec(loss=loss, log_info={"loss": loss})

    mox.set_flag("use_fp16", half)
    mox.set_flag("loss_scale", SCALE if half else 1.0)
    result = mox.run(
        input_fn=input_fn, model_fn=model_fn, run_mode=mox.ModeKeys.TRAIN, batch_size=options.batch, auto_batch=False,
        optimizer_fn=mox.get_optimizer_fn("momentum", learning_rate=0.001, momentum=0.9),
        max_number_of_steps=options.steps + WARM_UP, log_every_n_steps=100,
    )  # fmt: skip
    return float(result.step_s)


def run_loop(options: argparse.Namespace, half: bool) -> float:
    """Train with a session and a loop, as one writes it by hand; return seconds a step."""
    from moxserve.tensorflow.executor.env import tf, tf1

    def cast(getter: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        kwargs["dtype"] = tf.float32
        value = getter(name, *args, **kwargs)
        # The fused batch norm takes its parameters in float32.
        return value if not half or "BatchNorm" in name else tf.cast(value, tf.float16)

    with tf1.Graph().as_default():
        rows = tf.data.Dataset.from_tensors(batch_of(options)).repeat().prefetch(2)
        images, labels = tf1.data.make_one_shot_iterator(rows).get_next()
        with tf1.variable_scope("", custom_getter=cast):
            logits = logits_of(tf.cast(images, tf.float16) if half else images)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=tf.cast(logits, tf.float32))
        scale = SCALE if half else 1.0
        optimizer = tf1.train.MomentumOptimizer(0.001, 0.9)
        gradients = optimizer.compute_gradients(tf.reduce_mean(losses) * scale)
        with tf1.control_dependencies(tf1.get_collection(tf1.GraphKeys.UPDATE_OPS)):
            step = optimizer.apply_gradients([(g / scale, v) for g, v in gradients if g is not None])
        config = tf1.ConfigProto(allow_soft_placement=True)
        config.gpu_options.allow_growth = True
        with tf1.Session(config=config) as session:
            session.run(tf1.global_variables_initializer())
            for _ in range(WARM_UP):
                session.run(step)
            begin = time.perf_counter()
            for _ in range(options.steps):
                session.run(step)
            return (time.perf_counter() - begin) / options.steps


def keras_worker(options: argparse.Namespace) -> None:
    """Train with `model.fit`, and print the seconds a step."""
    import tensorflow as tf

    if options.half:
        tf.keras.mixed_precision.set_global_policy("mixed_float16")
    layers = tf.keras.layers
    body = tf.keras.applications.ResNet50(weights=None, include_top=False, pooling="avg",
                                          input_shape=(options.size, options.size, 3))  # fmt: skip
    net = tf.keras.Sequential([body, layers.Dense(CLASSES), layers.Activation("linear", dtype="float32")])
    net.compile(tf.keras.optimizers.SGD(0.001, 0.9), tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rows = tf.data.Dataset.from_tensors(batch_of(options)).repeat().prefetch(2)
    net.fit(rows, steps_per_epoch=WARM_UP, verbose=0)
    begin = time.perf_counter()
    net.fit(rows, steps_per_epoch=options.steps, verbose=0)
    print(json.dumps({"step_s": (time.perf_counter() - begin) / options.steps}))


def run_keras(options: argparse.Namespace, half: bool) -> float:
    """Have Keras train in a process of its own; return seconds a step."""
    words = [f"--{name}={getattr(options, name)}" for name in ("batch", "size", "steps")]
    command = [sys.executable, __file__, "--keras", *words, *(["--half"] if half else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["step_s"])


CONTENDERS = {"mox.run": run_mox, "loop": run_loop, "keras": run_keras}


def measure(options: argparse.Namespace, device: str) -> dict[str, Any]:
    """Let all take turns; return a row for each contender and precision."""
    rows = []
    for precision, half in (("fp32", False), ("fp16", True)):
        best: dict[str, float] = {}
        for _ in range(options.rounds):
            for name, run in CONTENDERS.items():
                best[name] = min(best.get(name, float("inf")), run(options, half))
        for name, step_s in best.items():
            rows.append({
                "precision": precision, "contender": name, "images_per_s": options.batch / step_s,
                "ratio": step_s / best["mox.run"], "aim": AIMS.get(name),
            })  # fmt: skip
    return {"device": device, "batch": options.batch, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--on-cpu", action="store_true", help="go on without a GPU: says that it runs, not how fast")
    parser.add_argument("--print-json", action="store_true", help="one line of JSON, and nothing else")
    parser.add_argument("--keras", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--half", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.keras:
        keras_worker(options)
        return
    import moxserve.tensorflow as mox
    from moxserve.tensorflow.executor.env import tf, tf1

    tf1.logging.set_verbosity(tf1.logging.ERROR)
    gpus = tf.config.list_physical_devices("GPU")
    found: dict[str, Any] = {"skipped": "TensorFlow sees no GPU on this machine"}
    if gpus or options.on_cpu:
        mox.set_flag("clone_on_cpu", not gpus)
        details = tf.config.experimental.get_device_details(gpus[0]) if gpus else {"device_name": "CPU"}
        found = measure(options, details.get("device_name", "GPU"))
    print(json.dumps(found, indent=None if options.print_json else 2))


if __name__ == "__main__":
    main()
