"""One process of a distributed training, measured: `mox.run`, or what one writes with TensorFlow alone.

`benchmarks/training.py` starts these through `moxserve launch`, both sides alike, and reads the line of JSON that the
chief prints. The plain scripts are TensorFlow's own ways: `SyncReplicasOptimizer` in a `MonitoredTrainingSession` with
a parameter server, `MultiWorkerMirroredStrategy` around a `tf.function` without one, a session and a loop for a single
process. All have the same model (see `training_step`), rows, batch size, optimizer and threads.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import threading
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from training_step import BATCH, CLASSES, data

WARM_UP = 5
THREADS = {"intra": 1, "inter": 2}  # of each process: two of them share the cores of one machine


def task() -> tuple[dict[str, list[str]], str, int]:
    """Return the cluster, and this process's job and index, out of TF_CONFIG."""
    config = json.loads(os.environ.get("TF_CONFIG", "{}"))
    told = config.get("task", {"type": "worker", "index": 0})
    return config.get("cluster", {}), told["type"], told["index"]


def tell(step_s: float, cpu_s: float) -> None:
    """Print what the chief measured."""
    _, job, index = task()
    if (job, index) == ("worker", 0):
        print(json.dumps({"step_s": step_s, "cpu_s": cpu_s}), flush=True)


def stopwatch(steps: int) -> Any:
    """Make a hook that measures as `measured` does: without the steps in which TensorFlow prepares what it runs."""
    from moxserve.tensorflow.executor.env import tf1

    class Stopwatch(tf1.train.SessionRunHook):  # type: ignore[misc]
        """Starts after the warm-up, and tells at the end; the steps between do not know of it."""

        def next_active_step(self, step: int) -> int:
            return WARM_UP if step <= WARM_UP else 1 << 62

        def after_run(self, _context: Any, _values: Any) -> None:
            self.began = time.perf_counter(), time.process_time()

        def end(self, _session: Any) -> None:
            (wall, cpu), counted = self.began, steps - WARM_UP - 1
            tell((time.perf_counter() - wall) / counted, (time.process_time() - cpu) / counted)

    return Stopwatch()


def mox_run(model: str, steps: int, batch: int = BATCH, hooks: tuple[Any, ...] = ()) -> Any:
    """Train with `mox.run`, under the flags that are set; return its result."""
    import moxserve.tensorflow as mox
    from moxserve.tensorflow.executor.env import tf, tf1

    tf1.logging.set_verbosity(tf1.logging.ERROR)

    def input_fn(_mode: str) -> Any:
        rows = tf.data.Dataset.from_tensor_slices(data(model)).repeat().batch(batch, drop_remainder=True).prefetch(2)
        return tf1.data.make_one_shot_iterator(rows).get_next()

    def model_fn(inputs: list[Any], _mode: str) -> Any:
        images, labels = inputs
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits_of(model, images))
        loss = tf.reduce_mean(losses)
        return mox.ModelSpec(loss=loss, log_info={"loss": loss}, hooks=list(hooks))

    return mox.run(
        input_fn=input_fn,
        model_fn=model_fn,
        optimizer_fn=mox.get_optimizer_fn("momentum", learning_rate=0.01, momentum=0.9),
        run_mode=mox.ModeKeys.TRAIN,
        batch_size=batch,
        auto_batch=False,
        max_number_of_steps=steps,
        log_every_n_steps=100,
    )


def with_mox(model: str, steps: int) -> None:
    """Train with `mox.run`, and measure it as the plain scripts are measured."""
    import moxserve.tensorflow as mox

    mox.set_flag("num_intra_threads", THREADS["intra"])
    mox.set_flag("num_inter_threads", THREADS["inter"])
    mox_run(model, steps + WARM_UP + 1, hooks=(stopwatch(steps + WARM_UP + 1),))


def logits_of(model: str, h: Any) -> Any:
    """Build the model with the layers of TensorFlow 1."""
    import tensorflow as tf

    layers, relu = tf.compat.v1.layers, tf.nn.relu
    if model == "tiny":
        return layers.dense(layers.dense(layers.dense(h, 32, relu), 32, relu), CLASSES[model])
    for filters in (32, 64):
        h = layers.max_pooling2d(layers.conv2d(h, filters, 5, padding="same", activation=relu), 2, 2)
    return layers.dense(layers.dense(layers.flatten(h), 256, relu), CLASSES[model])


def plain_graph(model: str, input_device: str = "") -> tuple[Any, Any]:
    """Build loss and global step."""
    import tensorflow as tf

    with tf.compat.v1.device(input_device):
        rows = tf.data.Dataset.from_tensor_slices(data(model)).repeat().batch(BATCH, drop_remainder=True).prefetch(2)
        images, labels = tf.compat.v1.data.make_one_shot_iterator(rows).get_next()
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits_of(model, images))
    return tf.reduce_mean(losses), tf.compat.v1.train.get_or_create_global_step()


def measured(step: Any, steps: int) -> None:
    """Run a function so many times, and tell what a call takes."""
    for _ in range(WARM_UP):
        step()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    tell((time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps)


def with_sessions(model: str, steps: int) -> None:
    """Train with a session and a loop; with a parameter server where the cluster has one."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow as tf

    tf1 = tf.compat.v1
    tf1.disable_eager_execution()
    cluster, job, index = task()
    config = tf1.ConfigProto(
        intra_op_parallelism_threads=THREADS["intra"],
        inter_op_parallelism_threads=THREADS["inter"],
        allow_soft_placement=True,
    )
    if not cluster:
        loss, count = plain_graph(model)
        train = tf1.train.MomentumOptimizer(0.01, 0.9).minimize(loss, global_step=count)
        with tf1.Session(config=config) as session:
            session.run(tf1.global_variables_initializer())
            measured(lambda: session.run(train), steps)
        return
    server = tf1.train.Server(cluster, job_name=job, task_index=index, config=config)
    if job == "ps":
        server.join()  # until the launcher ends it
    config.device_filters.extend(["/job:ps", f"/job:worker/task:{index}"])
    place = tf1.train.replica_device_setter(cluster=cluster, worker_device=f"/job:worker/task:{index}")
    with tf1.device(place):
        loss, count = plain_graph(model, f"/job:worker/task:{index}/cpu:0")
        workers = len(cluster["worker"])
        optimizer: Any = tf1.train.SyncReplicasOptimizer(
            tf1.train.MomentumOptimizer(0.01, 0.9), replicas_to_aggregate=workers, total_num_replicas=workers
        )
        train = optimizer.minimize(loss, global_step=count)
        joined = tf1.get_variable("joined", [], tf.int32, tf1.zeros_initializer(), trainable=False)
        join = joined.assign_add(1, use_locking=True).op
        missing = tf1.report_uninitialized_variables(tf1.global_variables())
    if index:
        threading.Thread(target=end_with, args=(cluster["worker"][0],), daemon=True).start()
        # TensorFlow looks for the chief's variables at once, and then every 30 seconds.
        with tf1.Session(server.target, config=config) as session:
            while len(session.run(missing)):
                time.sleep(0.2)
    hooks = [optimizer.make_session_run_hook(index == 0)]
    with tf1.train.MonitoredTrainingSession(
        server.target, index == 0, hooks=hooks, config=config, save_checkpoint_secs=None, log_step_count_steps=None,
        save_summaries_steps=None, stop_grace_period_secs=1,
    ) as session:  # fmt: skip
        session.run(join)
        while index or session.run(joined) < workers:  # tokens are not per worker: the others go on to the end
            session.run(train)
        first = session.run(count)
        wall, cpu = time.perf_counter(), time.process_time()
        while (done := session.run([train, count])[1] - first) < steps:
            continue
        tell((time.perf_counter() - wall) / done, (time.process_time() - cpu) / done)
        os._exit(0)


def end_with(address: str) -> None:
    """End this process when nobody listens any more at an address where somebody did."""
    host, _, port = address.partition(":")
    seen = False
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            seen = True
        except OSError:
            if seen:
                os._exit(0)
        time.sleep(0.2)


def with_strategy(model: str, steps: int) -> None:
    """Train with collectives, as TensorFlow 2 does."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(THREADS["intra"])
    tf.config.threading.set_inter_op_parallelism_threads(THREADS["inter"])
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    layers = tf.keras.layers
    if model == "tiny":
        stack = [layers.Dense(32, "relu"), layers.Dense(32, "relu"), layers.Dense(CLASSES[model])]
    else:
        stack = []
        for filters in (32, 64):
            stack += [layers.Conv2D(filters, 5, padding="same", activation="relu"), layers.MaxPooling2D(2, 2)]
        stack += [layers.Flatten(), layers.Dense(256, "relu"), layers.Dense(CLASSES[model])]
    x, y = data(model)
    with strategy.scope():
        net = tf.keras.Sequential([layers.Input(x.shape[1:]), *stack])
        weights = list(net.trainable_variables)
        moments = [tf.Variable(tf.zeros(w.shape), trainable=False) for w in weights]
    rows = tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(BATCH, drop_remainder=True).prefetch(2)
    iterator = iter(strategy.distribute_datasets_from_function(lambda _: rows))

    def replica(images: Any, labels: Any) -> None:
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=net(images, training=True))
            loss = tf.reduce_mean(losses)
        context = tf.distribute.get_replica_context()
        gradients = context.all_reduce(tf.distribute.ReduceOp.MEAN, tape.gradient(loss, weights))
        for weight, moment, gradient in zip(weights, moments, gradients, strict=True):
            moment.assign(0.9 * moment + gradient)
            weight.assign_sub(0.01 * moment)

    @tf.function
    def step(images: Any, labels: Any) -> None:
        strategy.run(replica, args=(images, labels))

    measured(lambda: step(*next(iterator)), steps)
    os._exit(0)


WAYS = {"mox": with_mox, "sessions": with_sessions, "strategy": with_strategy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=WAYS, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--steps", type=int, default=100)
    options, _ = parser.parse_known_args()  # the cluster's flags are mox's
    WAYS[options.way](options.model, options.steps)


if __name__ == "__main__":
    main()
