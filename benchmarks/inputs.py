"""Time of one training step by the way that data come in: feed_dict, queue, queue and staging, `tf.data`.

Two questions, each with all contenders taking turns in every round; the best round of each counts, because other work
on the machine only ever adds time.

    copy     a flow that gives the same batch of 32 images of 224x224x3 bytes (150 KB each) for ever, and a step that
             only reads it: what a way costs, in wall and CPU time of the process
    latency  data take 10 ms a batch (a sleep: another machine, a disk) and the step takes 10 ms (a sleep in the
             graph): 20 ms where one waits for the other, 10 ms where the wait is hidden

    python benchmarks/inputs.py [--rounds 5] [--steps 200] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

BATCH, SIDE = 32, 224
WAIT_S = 0.010


def flow(wait_s: float, image: bool) -> Any:
    """A flow of ready batches."""
    from moxserve.dataflow import DataFlow

    class Batches(DataFlow):
        def __iter__(self) -> Iterator[Any]:
            shape = (BATCH, SIDE, SIDE, 3) if image else (BATCH,)
            batch = [np.random.default_rng(0).integers(0, 256, shape, np.uint8)]
            while True:
                if wait_s:
                    time.sleep(wait_s)
                yield batch

    return Batches()


def sources() -> dict[str, Callable[[Any], Any]]:
    """The contenders."""
    from moxserve.tensorflow.executor.env import tf
    from moxserve.tensorflow.input_source import FeedInput, QueueInput, StagingInput, TFDatasetInput

    def from_generator(df: Any) -> Any:
        """What tf.data's users write."""
        df.reset_state()
        spec = tf.TensorSpec(np.shape(next(iter(df))[0]), tf.uint8)
        dataset = tf.data.Dataset.from_generator(lambda: map(tuple, iter(df)), output_signature=(spec,))
        return dataset.prefetch(2)

    return {
        "FeedInput (feed_dict)": FeedInput,
        "QueueInput": QueueInput,
        "StagingInput(QueueInput)": lambda df: StagingInput(QueueInput(df)),
        "TFDatasetInput": TFDatasetInput,
        "tf.data from_generator": from_generator,
    }


def step_time(make: Callable[[Any], Any], steps: int, wait_s: float, image: bool) -> dict[str, float]:
    """Milliseconds a step, wall and CPU."""
    import moxserve.tensorflow as mox
    from moxserve.tensorflow.executor.env import tf, tf1

    def model_fn(inputs: list[Any], _mode: str) -> Any:
        w = tf1.get_variable("w", [], initializer=tf1.zeros_initializer())
        read = tf.cast(tf.reduce_max(inputs[0]), tf.float32)
        if wait_s:
            read = tf.numpy_function(lambda x: (time.sleep(wait_s), x)[1], [read], tf.float32)
            read.set_shape([])
        return mox.ModelSpec(loss=w * read, log_info={"w": w})

    result = mox.run(
        input_fn=lambda _mode: make(flow(wait_s, image)),
        model_fn=model_fn,
        optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.1),
        run_mode="TRAIN",
        batch_size=BATCH,
        auto_batch=False,
        max_number_of_steps=steps,
        log_every_n_steps=0,
    )
    return {"wall_ms": result.step_s * 1e3, "cpu_ms": result.step_cpu_s * 1e3}


def measure(rounds: int, steps: int) -> dict[str, dict[str, dict[str, float]]]:
    """The best round of each contender, by question."""
    best: dict[str, dict[str, dict[str, float]]] = {"copy": {}, "latency": {}}
    for _ in range(rounds):
        for name, make in sources().items():
            for question, wait_s, image in (("copy", 0.0, True), ("latency", WAIT_S, False)):
                count = steps if question == "copy" else max(steps // 2, 20)
                found = step_time(make, count, wait_s, image)
                known = best[question].setdefault(name, found)
                best[question][name] = {key: min(known[key], found[key]) for key in found}
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs")
    parser.add_argument("--steps", type=int, default=200, help="steps of a run")
    parser.add_argument("--json", help="file to write the figures to")
    arguments = parser.parse_args()
    import moxserve.tensorflow  # noqa: F401 - graph mode
    from moxserve.tensorflow.executor.env import tf1

    tf1.logging.set_verbosity(tf1.logging.ERROR)
    best = measure(arguments.rounds, arguments.steps)
    for question, rows in best.items():
        base = rows["FeedInput (feed_dict)"]
        print(f"\n{question:28}{'wall ms':>10}{'to feed':>10}{'CPU ms':>10}{'to feed':>10}")
        for name, row in rows.items():
            wall, cpu = row["wall_ms"], row["cpu_ms"]
            print(f"{name:28}{wall:10.2f}{wall / base['wall_ms']:9.2f}x{cpu:10.2f}{cpu / base['cpu_ms']:9.2f}x")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(best, file, indent=2)


if __name__ == "__main__":
    main()
