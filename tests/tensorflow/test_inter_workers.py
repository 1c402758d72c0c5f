"""Hooks of several workers: one decision, the chief's, at the same step for all that step together; nobody hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.ports import free_port

TIMEOUT_S = 280
SCRIPT = """
import json, sys
import numpy as np
import moxserve.tensorflow as mox
from moxserve.tensorflow.executor.env import tf, tf1

folder, *cases = sys.argv[1].split(",")
random = np.random.default_rng(2)
X = random.normal(size=(64, 3)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5])).astype(np.float32)
ran = []


def input_fn(mode, **kwargs):  # all rows in each batch, on each worker: the mean gradient is that of one worker
    dataset = tf1.data.Dataset.from_tensors((X, Y))
    return dataset.repeat() if mode == mox.ModeKeys.TRAIN else dataset


class Stop(mox.AggregativeSessionRunHook):  # says together; asks on worker 1 alone
    def support_aggregation(self):
        return False

    def support_sync_workers(self):
        return True

    def run_inter_mode(self):
        return False

    def next_active_step(self, step):
        return step + (4 - step) % 5

    def after_run(self, run_context, run_values):
        ran.append(run_context.clock.global_step)
        if mox.get_flag("task_index") == 1 and len(ran) == 2:
            run_context.request_stop()


def model_fn(inputs, mode, **kwargs):
    x, y = inputs
    w = tf1.get_variable("w", [3], initializer=tf1.zeros_initializer())
    loss = tf.reduce_mean(tf.square(tf.linalg.matvec(x, w) - y))
    # The loss that worker 1 sees in an evaluation tells it other things than the chief's.
    seen = loss if mox.get_flag("task_index") == 0 or mode == "TRAIN" else loss * 0 - tf.cast(
        tf1.train.get_global_step(), tf.float32)
    sizes = {"batch_size": 64, "samples_in_train": 64 * 2 * 4, "samples_in_eval": 64}
    hooks = []
    if case == "plateau":
        hooks = [mox.PlateauLREarlyStoppingHook({"loss": seen}, "loss", min_delta=100.0, factor=0.5, **sizes),
                 mox.BestCheckpointHook({"loss": seen}, "loss", **sizes)]
    elif case == "stop":
        hooks = [Stop()]
    elif case == "unequal":
        sizes["samples_in_train"] += 512 * mox.get_flag("task_index")
        hooks = [mox.PlateauLREarlyStoppingHook({"loss": seen}, "loss", **sizes)]
    elif case == "apart":

        hooks = [mox.EarlyStoppingHook({"loss": seen}, "loss", min_delta=100.0, **sizes)]
    return mox.ModelSpec(loss=loss, log_info={"loss": loss}, hooks=hooks)


for case in cases:
    mox.set_flag("sync_replicas", case != "apart")
    result = mox.run(
        input_fn=input_fn, model_fn=model_fn, optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.05),
        run_mode=mox.ModeKeys.TRAIN, inter_mode=mox.ModeKeys.EVAL if case in ("plateau", "unequal", "apart") else None,
        batch_size=64, auto_batch=False, max_number_of_steps=100000, log_dir=f"{folder}/{case}", log_every_n_steps=0,
    )
    if result is not None and mox.get_flag("job_name") == "worker":
        print("RESULT", json.dumps({
            "case": case, "stop": result.stop_reason, "step": result.global_step, "steps": result.local_steps,
            "best": result.best, "checkpoint": result.checkpoint, "ran": ran}), flush=True)
"""


def run_job(tmp_path: Path, cases: list[str], ps: int) -> list[tuple[int, str, Any]]:
    """Run the script in a job of two workers; gives for each worker its exit status, output and results by case."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    hosts = [f"localhost:{free_port()}" for _ in range(2 + ps)]
    cluster = [f"--worker_hosts={','.join(hosts[:2])}", f"--ps_hosts={','.join(hosts[2:])}"]
    places = [("worker", 0), ("worker", 1), *(("ps", i) for i in range(ps))]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    environment.pop("TF_CONFIG", None)
    given = ",".join([str(tmp_path), *cases])
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), given, f"--job_name={job}", f"--task_index={i}", *cluster],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )
        for job, i in places
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    results = []
    for process, output in zip(processes[:2], outputs, strict=False):
        lines = [line.removeprefix("RESULT ") for line in output.splitlines() if line.startswith("RESULT ")]
        results.append((process.returncode, output, {r["case"]: r for r in map(json.loads, lines)}))
    return results


def weights(checkpoint: str) -> np.ndarray:
    from moxserve.tensorflow.executor.env import tf1

    value: np.ndarray = tf1.train.NewCheckpointReader(checkpoint).get_tensor("w")
    return value


def expected(rates: list[float]) -> np.ndarray:
    random = np.random.default_rng(2)
    x = random.normal(size=(64, 3)).astype(np.float32)
    y = (x @ np.array([1.0, -2.0, 0.5])).astype(np.float32)
    w = np.zeros(3)
    for rate in rates:
        w -= rate * 2 * x.T.astype(np.float64) @ (x @ w - y) / 64
    return w


def check_plateau(results: Any, tmp_path: Path) -> None:
    """Evaluations after the global steps 4, 8, 12, 16; the last ends the training with the step that follows."""
    chief, other = (found["plateau"] for _, _, found in results)
    assert (chief["stop"], chief["step"]) == (other["stop"], other["step"]) == ("request_stop", 17)
    rates = [0.05] * 8 + [0.025] * 4 + [0.0125] * 5
    np.testing.assert_allclose(weights(chief["checkpoint"]), expected(rates), rtol=1e-4)
    assert chief["best"] == str(tmp_path / "plateau/best/model.ckpt-16")
    np.testing.assert_allclose(weights(chief["best"]), expected(rates[:16]), rtol=1e-4)
    lines = [output.count("[PlateauLREarlyStopping] step: ") for _, output, _ in results]
    assert lines == [4, 0]  # the chief evaluates, for all


def check_stop(results: Any) -> None:
    chief, other = (found["stop"] for _, _, found in results)
    assert (chief["stop"], chief["step"]) == (other["stop"], other["step"]) == ("request_stop", 11)
    assert chief["ran"] == other["ran"] == [5, 10]


@pytest.mark.slow
def test_workers_with_parameter_servers(tmp_path: Path) -> None:
    results = run_job(tmp_path, ["plateau", "stop", "apart"], ps=1)
    assert [code for code, _, _ in results] == [0, 0], results[0][1] + results[1][1]
    check_plateau(results, tmp_path)
    check_stop(results)
    chief, other = (found["apart"] for _, _, found in results)
    assert chief["stop"] == other["stop"] == "request_stop"
    assert chief["steps"] + other["steps"] >= 16  # an epoch has 8 steps of one worker
    assert [output.count("[EarlyStopping] step: ") for _, output, _ in results] == [2, 0]


@pytest.mark.slow
def test_workers_that_reduce_together(tmp_path: Path) -> None:
    results = run_job(tmp_path, ["plateau", "stop", "unequal"], ps=0)
    check_plateau(results, tmp_path)
    check_stop(results)
    for index, (code, output, _) in enumerate(results):
        assert code == 1
        assert f"evaluates every {4 * (index + 1)} steps on worker {index}, and at other steps on other" in output
