"""Runs that are stopped from outside: signals, and kill -9 in the middle of saving. Real processes."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moxserve.tensorflow.executor.checkpoint import is_complete, latest_checkpoint, step_in_name
from moxserve.tensorflow.executor.lock import ended_at

pytestmark = pytest.mark.slow
PATIENCE_S = 240  # of a machine that has other things to do

# Every variable holds the number of steps made, so a checkpoint that mixes two states gives itself away.
SCRIPT = """
import sys, time
import tensorflow.compat.v1 as tf
import moxserve.tensorflow as mox

class Pace(mox.AggregativeSessionRunHook):
    steps = 0
    support_aggregation = support_sync_workers = run_inter_mode = lambda self: False
    def after_create_session(self, session, coord):
        print('ready', flush=True)
    def before_run(self, context):
        time.sleep(PACE_S)
        self.steps += 1
        if self.steps == 20:
            print('twenty', flush=True)
    def end(self, session):
        print('end', flush=True)

def one_shot(dataset):
    return dataset.make_one_shot_iterator().get_next()

def input_fn(mode):
    return one_shot(tf.data.Dataset.from_tensors(tf.constant(1.0)).repeat())

def blocked(mode):
    def generate():
        print('blocked', flush=True)
        time.sleep(1000)
        yield 1.0
    return one_shot(tf.data.Dataset.from_generator(generate, tf.float32, tf.TensorShape([])))

def model_fn(inputs, mode):
    parts = [tf.get_variable('w%d' % i, [SIZE], initializer=tf.zeros_initializer()) for i in range(4)]
    loss = -tf.add_n([tf.reduce_sum(p) for p in parts]) * tf.reduce_mean(inputs[0])  # of ones
    return mox.ModelSpec(loss=loss, log_info={'loss': loss}, hooks=[Pace()])

def run(log_dir, steps=10**9, **kwargs):
    given = dict(input_fn=input_fn, model_fn=model_fn, optimizer_fn=mox.get_optimizer_fn('sgd', learning_rate=1.0),
                 run_mode='TRAIN', batch_size=1, log_dir=log_dir, max_number_of_steps=steps, log_every_n_steps=0,
                 save_summary_steps=0)
    return mox.run(**{**given, **kwargs})
"""


def script(body: str, pace_s: float = 0.002, size: int = 10) -> str:
    return SCRIPT.replace("PACE_S", str(pace_s)).replace("SIZE", str(size)) + body


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def call(text: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", text, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            start_new_session=True,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what it forked
        process.communicate()


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    pytest.fail(f"the process ended before it said {word!r}: {process.stderr.read() if process.stderr else ''}")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_ends_the_hooks_and_says_so(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, signum: int, code: int
) -> None:
    process = start(script("run(sys.argv[1])\nprint('never')"), str(tmp_path))
    wait_for(process, "twenty")
    process.send_signal(signum)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code
    assert out.split() == ["end"]
    assert "Traceback" not in err
    assert f"stopped by {signal.Signals(signum).name} after step" in err
    assert "run it again to go on from there" in err
    saved = latest_checkpoint(tmp_path)
    assert saved is not None
    assert step_in_name(saved) > 10  # it had begun with the twentieth
    goal = step_in_name(saved) + 7
    resumed = start(
        script(f"r = run(sys.argv[1], {goal})\nprint(r.start_step, r.global_step, r.stop_reason)"), str(tmp_path)
    )
    out, err = resumed.communicate(timeout=PATIENCE_S)
    assert out.split()[-3:] == [str(step_in_name(saved)), str(goal), "max_steps"], err


def test_the_error_can_be_caught_and_handlers_are_given_back(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    body = """
import signal
from moxserve.errors import InterruptedRunError
before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
try:
    run(sys.argv[1])
except InterruptedRunError as error:
    print(error.signum, error.code, str(error).replace('\\n', ' | '))
assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
"""
    process = start(script(body), str(tmp_path))
    wait_for(process, "ready")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert re.search(
        r"15 143 stopped by SIGTERM after step \d+; checkpoint \S+model.ckpt-\d+ is written \| hint: ", out
    )


def test_a_second_signal_ends_a_run_that_is_stuck(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = start(script("run(sys.argv[1], input_fn=blocked)"), str(tmp_path))
    wait_for(process, "blocked")  # a step is under way
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=PATIENCE_S) == 143


def test_a_signal_after_the_last_step_is_not_lost(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    body = """
import os, signal
def end(self, session):
    os.kill(os.getpid(), signal.SIGTERM)
Pace.end = end
run(sys.argv[1], 3)
print('never')
"""
    process = start(script(body), str(tmp_path))
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out.split()) == (143, ["ready"]), err
    assert "stopped by SIGTERM after step 3; checkpoint" in err
    assert ended_at(str(tmp_path)) == 3


def test_runs_outside_of_the_main_thread_work(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    body = """
import threading
thread = threading.Thread(target=lambda: print(run(sys.argv[1], 3).global_step))
thread.start(); thread.join()
"""
    out, err = start(script(body), str(tmp_path)).communicate(timeout=PATIENCE_S)
    assert out.split()[-1] == "3", err


# One parent imports TensorFlow once and forks a trainer for each round: starting Python twenty times would take
# minutes.
ROUNDS = """
import os
import numpy as np
tf.logging.set_verbosity(tf.logging.ERROR)  # nobody reads stderr before the end: a line a save would fill the pipe

class Check(Pace):
    steps = -10**9  # says no number

    def after_create_session(self, session, coord):
        step = session.run(tf.train.get_global_step(session.graph))
        values = session.run(['w%d/Read/ReadVariableOp:0' % i for i in range(4)])
        same = all((v == step).all() for v in values)
        print('ready' if same else 'BROKEN %s' % [v.mean() for v in values], step, flush=True)

def checked_model_fn(inputs, mode):
    spec = model_fn(inputs, mode)
    spec.hooks[:] = [Check()]
    return spec

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(sys.argv[1], model_fn=checked_model_fn, save_model_steps=1)
        os._exit(0)
    print('pid', child, flush=True)
    os.waitpid(child, 0)
    print('dead', flush=True)
"""


def stopped_while_it_writes(process: int, folder: Path, chance: random.Random) -> bool:
    """Stop a process, and let it go on if it is writing no checkpoint."""
    os.kill(process, signal.SIGSTOP)
    until(lambda: Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    if any(folder.glob("*.tempstate*")):
        return True
    os.kill(process, signal.SIGCONT)
    time.sleep(chance.uniform(0.0, 0.01))
    return False


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S / 2
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_kill_9_at_any_moment_of_saving_leaves_a_complete_checkpoint(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    rounds = 12
    chance = random.Random(20)
    reached = in_the_middle = 0
    process = start(script(ROUNDS, pace_s=0.0, size=300_000), str(tmp_path))
    assert process.stdin is not None
    assert process.stdout is not None
    for number in range(rounds):
        process.stdin.write("go\n")
        process.stdin.flush()
        child = int(process.stdout.readline().split()[1])
        word, step = process.stdout.readline().split(maxsplit=1)
        assert word == "ready", step
        assert int(step) >= reached, "a later run began before the checkpoint of an earlier one"
        # Two are whole: what an earlier round left is swept, and all rounds together get on.
        until(lambda begun=int(step): (found := latest_checkpoint(tmp_path)) and step_in_name(found) >= begun + 2)
        time.sleep(chance.uniform(0.0, 0.3))
        # On a quick disk chance alone may miss every writing: half of the kills are of one that is seen to write.
        if number % 2:
            until(lambda child=child: stopped_while_it_writes(child, tmp_path, chance))
        os.kill(child, signal.SIGKILL)
        assert process.stdout.readline().strip() == "dead"
        in_the_middle += any(tmp_path.glob("*.tempstate*"))
        newest = latest_checkpoint(tmp_path)
        if newest is not None:
            assert is_complete(newest)
            reached = step_in_name(newest)
    assert reached > rounds
    assert in_the_middle > 0, "no kill hit the writing of a checkpoint: the test shows nothing"
    assert len(list(tmp_path.glob("*.tempstate*"))) <= 2  # of the last round only; earlier ones were swept
    assert len(list(tmp_path.glob("model.ckpt-*.index"))) <= 7
