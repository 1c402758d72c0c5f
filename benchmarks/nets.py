"""Images per second of networks: ours against the same architecture out of `tf_keras.applications`, in graph mode.

Both sides are graphs in sessions of one process, get the same images of random pixels from the same placeholder's feed
and take turns in each round; weights are random. `forward` is a frozen graph as it is exported: variables are constants
and TensorFlow folds what it can. `training` is a step of softmax cross entropy and momentum SGD with the updates of
batch norms. Both sides use fused batch norms, 1,000 classes, no dropout, no auxiliary classifier, no weight decay. Our
ResNet-50 is built with `keras=True`, which puts its strides where Keras has them: slim's own does less work.

The best round of each counts, because other work on the machine only ever adds time; ratios are of images per second,
ours to theirs: above 1 ours is faster. The aim is held against CPU time, which depends least on that other work.

    python benchmarks/nets.py [--networks resnet_v1_50,mobilenet_v2,inception_v3] [--batch 8] [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

AIM = 1.0
CLASSES = 1000


@dataclass(frozen=True)
class Network:
    """A network on both sides.

    Attributes:
        peer: its name in `tf_keras.applications`.
        size: of the square images.
        options: of our builder, which make the two the same.
    """

    peer: str
    size: int
    options: dict[str, Any] = field(default_factory=dict)


NETWORKS = {
    "resnet_v1_50": Network("ResNet50", 224, {"keras": True}),
    "mobilenet_v2": Network("MobileNetV2", 224, {"dropout_keep_prob": 1.0}),
    "inception_v3": Network("InceptionV3", 299, {"dropout_keep_prob": 1.0, "create_aux_logits": False}),
}


def our_logits(name: str, images: Any, training: bool) -> tuple[Any, list[Any]]:
    """Build our network; return its logits and the updates of its batch norms."""
    from importlib import import_module

    from moxserve.tensorflow.executor.env import tf1
    from moxserve.tensorflow.nets.base import Build
    from moxserve.tensorflow.nets.catalog import network

    row = network(name)
    module, _, function = row.target.partition(":")
    builder = getattr(import_module(module), function)
    build = Build(num_classes=CLASSES, training=training, fused=True)
    logits, _ = builder(images, build, **{**row.arguments, **NETWORKS[name].options})
    return logits, tf1.get_collection(tf1.GraphKeys.UPDATE_OPS)


def keras_logits(name: str, images: Any, training: bool) -> tuple[Any, list[Any]]:
    """Build the network of tf_keras; return its logits and the updates of its batch norms."""
    from moxserve.tensorflow.executor.env import tf

    peer = NETWORKS[name]
    application = getattr(tf.keras.applications, peer.peer)
    tf.keras.backend.set_learning_phase(int(training))
    model = application(weights=None, classes=CLASSES, classifier_activation=None, input_tensor=images)
    return model.output, list(model.updates) if training else []


SIDES: dict[str, Callable[[str, Any, bool], tuple[Any, list[Any]]]] = {"moxserve": our_logits, "tf_keras": keras_logits}


class Contender:
    """One side's network in a graph and a session of its own.

    Attributes:
        flops: floating point operations of a forward pass of one image, two a product.
    """

    def __init__(self, side: str, name: str, phase: str, batch: int) -> None:
        from moxserve.tensorflow.executor.env import tf, tf1

        size = NETWORKS[name].size
        self.images = np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype(np.float32)
        with tf1.Graph().as_default() as graph:
            placeholder = tf1.placeholder(tf.float32, [batch, size, size, 3], name="images")
            logits, updates = SIDES[side](name, placeholder, phase == "training")
            self.flops = flops_of(graph) / batch
            fetch = tf.identity(logits, name="logits")
            if phase == "training":
                labels = tf.constant(np.arange(batch) % CLASSES)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=fetch)
                loss = tf.reduce_mean(losses)
                with tf1.control_dependencies(updates):
                    step = tf1.train.MomentumOptimizer(0.001, 0.9).minimize(loss)
                with tf1.control_dependencies([step]):
                    fetch = tf.identity(loss, name="loss")
            self.session = tf1.Session()
            self.session.run(tf1.global_variables_initializer())
        if phase == "forward":
            self.session, fetch = frozen(self.session)
        self.call = self.session.make_callable(fetch.name, feed_list=["images:0"])

    def turn(self, calls: int) -> tuple[float, float]:
        """Run it some times; return images per second, and per CPU-second."""
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(calls):
            result = self.call(self.images)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if not np.isfinite(result).all():  # what is measured must be a network that computes
            raise SystemExit("the network's results are not finite")
        done = calls * len(self.images)
        return done / wall, done / cpu


def flops_of(graph: Any) -> float:
    """Count the operations of convolutions and dense layers in a graph that has nothing else, two a product."""
    total = 0.0
    for op in graph.get_operations():
        if op.type in ("Conv2D", "DepthwiseConv2dNative", "MatMul"):
            kernel, out = op.inputs[1].shape.as_list(), op.outputs[0].shape.as_list()
            products = (
                kernel[0] * kernel[1] * (kernel[2] if op.type == "Conv2D" else 1) if len(kernel) == 4 else kernel[0]
            )
            total += 2.0 * products * float(np.prod(out))
    return total


def frozen(session: Any) -> tuple[Any, Any]:
    """Return a session over the graph with constants for variables, and the logits in it; close the one given."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_from_session_graph

    from moxserve.tensorflow.executor.env import tf1

    definition = convert_variables_to_constants_from_session_graph(session, session.graph.as_graph_def(), ["logits"])
    session.close()
    with tf1.Graph().as_default() as graph:
        tf1.import_graph_def(definition, name="")
        return tf1.Session(), graph.get_tensor_by_name("logits:0")


def measure(name: str, phase: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Let both sides take turns; return a row for each."""
    contenders = {side: Contender(side, name, phase, options.batch) for side in SIDES}
    calls = options.calls if phase == "forward" else max(1, options.calls // 3)
    best = {side: [0.0, 0.0] for side in contenders}
    for contender in contenders.values():
        contender.turn(1 if options.rounds == 1 else 2)  # grappler and oneDNN prepare
    for number in range(options.rounds):
        for side in list(contenders)[:: -1 if number % 2 else 1]:
            best[side] = [max(pair) for pair in zip(best[side], contenders[side].turn(calls), strict=True)]
    rows = []
    for side, (wall, cpu) in best.items():
        theirs = best["tf_keras"]
        rows.append(
            {
                "network": name,
                "phase": phase,
                "side": side,
                "batch": options.batch,
                "gflops": contenders[side].flops / 1e9,
                "images_per_s": wall,
                "images_per_cpu_s": cpu,
                "ratio_wall": wall / theirs[0],
                "ratio_cpu": cpu / theirs[1],
            }
        )
        contenders[side].session.close()
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows of one measurement."""
    for row in rows:
        print(f"{row['network']:14s}{row['phase']:10s}{row['side']:10s}{row['gflops']:8.2f}", end="")
        print(f"{row['images_per_s']:11.2f}{row['images_per_cpu_s']:14.2f}", end="")
        if row["side"] == "moxserve":
            met = "met" if row["ratio_cpu"] >= AIM else "MISSED"
            print(f"{row['ratio_wall']:8.3f}{row['ratio_cpu']:8.3f}  CPU >= {AIM:.2f}: {met}", end="")
        print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="comma-separated")
    parser.add_argument("--phases", default="forward,training", help="comma-separated")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=6, help="forward passes in a turn; a third as many training steps")
    parser.add_argument("--size", type=int, help="side of the images; default: that of the network")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    names = options.networks.split(",")
    unknown = sorted({*names} - {*NETWORKS})
    if unknown:
        parser.error(f"no network {', '.join(unknown)}; known: {', '.join(NETWORKS)}")
    if options.size:
        NETWORKS.update({n: Network(NETWORKS[n].peer, options.size, NETWORKS[n].options) for n in names})
    print(f"batch {options.batch}, best of {options.rounds} rounds; ratios of images per second, ours to tf_keras")
    print(f"{'network':14s}{'phase':10s}{'side':10s}{'GFLOP':>8s}{'images/s':>11s}{'images/CPU-s':>14s}", end="")
    print(f"{'wall':>8s}{'CPU':>8s}")
    rows: list[dict[str, Any]] = []
    for name in names:
        for phase in options.phases.split(","):
            rows += measure(name, phase, options)
            show(rows[-len(SIDES) :])
    if options.json:
        with open(options.json, "w", encoding="utf-8") as f:
            json.dump(rows, f, indent=2)


if __name__ == "__main__":
    main()
