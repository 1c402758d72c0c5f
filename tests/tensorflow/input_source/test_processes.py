"""Input threads and signals, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import sys, threading, time
import numpy as np
import tensorflow.compat.v1 as tf
import moxserve.tensorflow as mox
from moxserve.dataflow import DataFlow
from moxserve.tensorflow.input_source import *
from moxserve.tensorflow.input_source import pump

pump._JOIN_S = 0.5  # what is given up after five seconds is given up all the same

class Stuck(DataFlow):
    def __iter__(self):
        for i in range(3):
            yield [np.float32(i)]
        print('stuck', flush=True)
        time.sleep(1000)

class Tell(tf.train.SessionRunHook):
    def after_run(self, context, values):
        print('step', flush=True)

def model_fn(inputs, mode):
    w = tf.get_variable('w', [], initializer=tf.zeros_initializer())
    return mox.ModelSpec(loss=w * tf.reduce_mean(inputs[0]), log_info={'w': w}, hooks=[Tell()])

try:
    mox.run(input_fn=lambda mode: SOURCE, model_fn=model_fn, run_mode='TRAIN', batch_size=1, log_dir=sys.argv[1],
            optimizer_fn=mox.get_optimizer_fn('sgd', learning_rate=1.0), max_number_of_steps=10**9)
finally:
    print([t.name for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon], flush=True)
"""


@pytest.mark.parametrize("source", ["Stuck()", "StagingInput(QueueInput(Stuck()))"])
def test_one_signal_ends_a_run_that_waits_for_data(source: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.replace("SOURCE", source), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert process.stdout is not None
    try:
        assert sorted(process.stdout.readline() for _ in range(4)) == ["step\n"] * 3 + ["stuck\n"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
        process.wait()
    assert "stopped by SIGINT after step 3" in err
    assert (tmp_path / "model.ckpt-3.index").exists()
    assert "is still waiting for a datapoint" in err
    assert out == "[]\n"
