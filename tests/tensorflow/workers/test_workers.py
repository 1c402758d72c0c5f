"""Trainings of several processes: what they learn, what survives a kill, what they say while they wait."""

from __future__ import annotations

import signal
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.dataflow.order import EpochOrder
from moxserve.errors import UsageError, WorkersLostError
from moxserve.ports import free_port
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.workers.part import is_lost
from moxserve.tensorflow.executor.workers.peers import Peer, wait_for
from moxserve.tensorflow.executor.workers.shards import input_of, own_shard

pytestmark = pytest.mark.timeout(900)  # these have many processes on what is often two cores
OPTIMIZERS = ("sgd", "momentum", "adam")


def reader(folder: str) -> Any:
    """What the last checkpoint of a folder holds."""
    return tf1.train.NewCheckpointReader(tf1.train.latest_checkpoint(folder))


def assert_learned_as_one_device(one: Any, folder: Path) -> None:
    """A job's last checkpoint holds what a single device learns from batches as large as all towers' together."""
    alone = replace(one, folder=str(folder), synchronous=True, towers=1, rows=one.rows * 2 * one.towers)
    if one.optimizer == "gathered":  # the mean of two steps of both workers is an update
        alone = replace(alone, optimizer="sgd", rows=alone.rows * 2, steps=one.steps // 2)
    if one.optimizer == "compressed":  # which here sends all, without momentum
        alone = replace(alone, optimizer="sgd")
    alone.run()
    written, expected = reader(one.folder), reader(alone.folder)
    names = set(expected.get_variable_to_shape_map())
    state = {name for name in written.get_variable_to_shape_map() if name.startswith("dgc/")}
    assert set(written.get_variable_to_shape_map()) - state == names
    assert all(np.abs(written.get_tensor(name)).max() == 0 for name in state)  # all has been applied
    for name in names - {"global_step"}:
        np.testing.assert_allclose(written.get_tensor(name), expected.get_tensor(name), rtol=1e-4, atol=2e-6)


@pytest.fixture(scope="module")
def served(cluster: Any, training: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Any]]:
    """A job with a parameter server that trained and evaluated several times, and its plan."""
    folder = tmp_path_factory.mktemp("served")
    plan = [
        training(str(folder / "towers"), "momentum", towers=2),
        *(training(str(folder / name), name) for name in OPTIMIZERS),
        training(str(folder / "apart"), synchronous=False, save_steps=10),
        training(str(folder / "apart"), mode="EVAL", steps=0),
        training(str(folder / "gathered"), "gathered", synchronous=False, batches=31),
        training(str(folder / "finite"), steps=0, batches=7),
        training(str(folder / "compressed"), "compressed", synchronous=False),
        training(str(folder / "onward"), steps=30, start=str(folder / "sgd")),
        training(str(folder / "phases"), "momentum", steps=12, until=6),
        training(str(folder / "phases apart"), synchronous=False, steps=8, until=4),
        training(str(folder / "stopped"), steps=100000, pause=0.02),
    ]
    job = cluster(1, plan, "--log_first_worker=false")
    job.start("worker1")
    job.wait_for("worker1", r"waiting for ps 0 at localhost:\d+ \(\d+ s\): is it started\?")
    job.start("worker0", {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"})
    job.start("ps0")
    job.wait_for("worker1", rf"(?s)RESULT {len(plan) - 2} .*step: 10\(")
    job.send("worker1", signal.SIGTERM)
    job.ended({"worker0": 128 + signal.SIGTERM, "worker1": 128 + signal.SIGTERM})
    return job, plan


@pytest.mark.slow
def test_synchronous_workers_learn_what_one_device_learns(served: Any, tmp_path: Path) -> None:
    job, plan = served
    for one in plan[:4]:
        assert_learned_as_one_device(one, tmp_path / f"{one.optimizer}{one.towers}")
    for name in ("worker0", "worker1"):
        told = [(r["global_step"], r["local_steps"], r["stop_reason"]) for r in job.results(name)[:4]]
        assert told == [(20, 20, "max_steps")] * 4
    assert [bool(r["checkpoint"]) for r in job.results("worker1")[:4]] == [False] * 4  # the chief's alone


@pytest.mark.slow
def test_asynchronous_workers_each_make_their_steps(served: Any) -> None:
    job, plan = served
    results = [job.results(name)[4] for name in ("worker0", "worker1")]
    assert [r["local_steps"] for r in results] == [20, 20]
    assert results[0]["global_step"] == 40
    assert 20 <= results[1]["global_step"] <= 40  # as it was when this worker had made its steps
    assert int(reader(plan[4].folder).get_tensor("global_step")) == 40
    # After the training each evaluates the last checkpoint by itself.
    means = [job.results(name)[5]["metrics"]["loss"] for name in ("worker0", "worker1")]
    assert means[0] == means[1]
    assert 0.0 < means[0] < 1.0


@pytest.mark.slow
def test_asynchronous_workers_meet_for_the_updates_of_a_wrapper(served: Any, tmp_path: Path) -> None:
    job, plan = served
    assert_learned_as_one_device(plan[6], tmp_path / "alone")
    assert [job.results(name)[6]["local_steps"] for name in ("worker0", "worker1")] == [20, 20]


@pytest.mark.slow
def test_compressed_gradients_meet_on_the_parameter_server(served: Any, tmp_path: Path) -> None:
    _, plan = served
    assert_learned_as_one_device(plan[8], tmp_path / "alone")


@pytest.mark.slow
def test_all_workers_read_from_the_first_row_after_a_checkpoint_of_another_folder(served: Any, tmp_path: Path) -> None:
    job, plan = served
    assert [r["start_step"] for r in (job.results(name)[9] for name in ("worker0", "worker1"))] == [20, 20]
    assert_learned_as_one_device(plan[9], tmp_path / "alone")


@pytest.mark.slow
def test_workers_with_parameter_servers_train_in_phases(served: Any, tmp_path: Path) -> None:
    job, plan = served
    assert_learned_as_one_device(plan[10], tmp_path / "alone")
    for number, step, own in ((10, 12, 12), (11, 16, 8)):
        results = [job.results(name)[number] for name in ("worker0", "worker1")]
        assert [(r["start_step"], r["local_steps"], r["stop_reason"]) for r in results] == [(0, own, "max_steps")] * 2
        assert int(reader(plan[number].folder).get_tensor("global_step")) == step
        assert reader(plan[number].folder).has_tensor("scaling/scale")


@pytest.mark.slow
def test_the_end_of_one_workers_input_ends_all(served: Any) -> None:
    job, _ = served
    results = [job.results(name)[7] for name in ("worker0", "worker1")]
    assert [r["stop_reason"] for r in results] == ["end_of_input"] * 2
    # The first worker has a batch more, which makes a step of its own.
    assert [r["global_step"] for r in results] == [7, 7]


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_all_after_the_same_step(served: Any) -> None:
    job, plan = served
    step = int(reader(plan[-1].folder).get_tensor("global_step"))
    assert f"stopped by SIGTERM after step {step}; checkpoint" in job.text("worker0")
    assert f"stopped by SIGTERM after step {step}; nothing was saved" in job.text("worker1")


@pytest.mark.slow
def test_the_parameter_server_ends_with_its_workers(served: Any) -> None:
    job, plan = served
    reasons = [result["stop_reason"] for result in job.results("ps0")]
    assert reasons == ["no_servers_needed" if one.mode == "EVAL" else "workers_done" for one in plan]


@pytest.mark.slow
def test_all_reduce_learns_what_one_device_learns(cluster: Any, training: Any, tmp_path: Path) -> None:
    plan = [
        training(str(tmp_path / "towers"), "adam", towers=2),
        *(training(str(tmp_path / name), name) for name in OPTIMIZERS),
        training(str(tmp_path / "finite"), steps=0, batches=7),
        training(str(tmp_path / "sgd"), mode="EVAL", steps=0),
        training(str(tmp_path / "phases"), "momentum", steps=12, until=6),
        training(str(tmp_path / "killed"), "momentum", steps=100000, pause=0.02),
    ]
    job = cluster(0, plan)
    job.start_all()
    job.wait_for("worker0", r"(?s)RESULT 6 .*step: 40\(")
    job.send("worker1", signal.SIGKILL)
    job.ended({"worker0": 75, "worker1": -signal.SIGKILL})  # a collective cannot be taken up again
    assert "worker 1 at localhost:" in job.text("worker0")
    made = replace(plan[-1], steps=int(reader(plan[-1].folder).get_tensor("global_step")), pause=0.0)
    assert made.steps >= 40  # the chief has saved what the last whole step has left
    for one in (*plan[:4], plan[6], made):
        assert_learned_as_one_device(one, tmp_path / f"alone-{one.optimizer}{one.towers}{one.steps}")
    results = job.results("worker0")
    assert [(r["global_step"], r["stop_reason"]) for r in results[3:5]] == [(20, "max_steps"), (7, "end_of_input")]
    assert [job.results(name)[5]["metrics"] for name in ("worker0", "worker1")] == [results[5]["metrics"]] * 2
    assert [(job.results(name)[6]["local_steps"]) for name in ("worker0", "worker1")] == [12, 12]


def assert_a_signal_ends_a_step_without_the_missing(job: Any, one: Any, *, served: bool, alone: Path) -> None:
    """The chief, who gets a signal while worker 1 stands still, saves what the last whole step has left."""
    job.send("worker1", signal.SIGSTOP)
    time.sleep(0.5)  # the step after the last that both made has begun
    job.send("worker0", signal.SIGTERM)
    assert job.status("worker0") == 128 + signal.SIGTERM
    made = replace(one, steps=int(reader(one.folder).get_tensor("global_step")), pause=0.0)
    assert made.steps >= 10
    assert f"stopped by SIGTERM after step {made.steps}; checkpoint" in job.text("worker0")
    if served:  # whoever comes back learns of the end, and the parameter server ends, too
        job.send("worker1", signal.SIGCONT)
        job.ended(dict.fromkeys(("worker0", "worker1"), 128 + signal.SIGTERM))
    else:
        job.send("worker1", signal.SIGKILL)
    assert_learned_as_one_device(made, alone)
    resumed = replace(made, steps=made.steps + 2).run()
    assert (resumed.start_step, resumed.local_steps) == (made.steps, 2)


@pytest.mark.slow
def test_a_signal_ends_a_collective_that_waits_for_a_missing_worker(
    cluster: Any, training: Any, tmp_path: Path
) -> None:
    one = training(str(tmp_path / "log"), "momentum", steps=100000, pause=0.02)
    job = cluster(0, [one])
    job.start_all()
    job.wait_for("worker0", r"step: 10\(")
    assert_a_signal_ends_a_step_without_the_missing(job, one, served=False, alone=tmp_path / "alone")


@pytest.mark.slow
def test_a_job_survives_the_kill_of_each_process(cluster: Any, training: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"  # so that the training does not end before the parameter server has
    one = training(str(tmp_path / "log"), "momentum", steps=100, pause=0.05, save_steps=10, gate=str(gate))
    stopped = training(str(tmp_path / "stopped"), "momentum", steps=100000, pause=0.02)
    job = cluster(1, [one, stopped])
    job.start_all()
    job.wait_for("worker0", "Saving checkpoints for 10")
    job.send("worker1", signal.SIGKILL)
    job.start("worker1")
    job.wait_for("worker0", "Saving checkpoints for 30")  # not without the other one
    job.send("worker0", signal.SIGKILL)
    job.start("worker0")
    # What the parameter server has is not rolled back to the checkpoint.
    live = int(job.wait_for("worker0", r"hold the variables, at global step (\d+)").group(1))
    assert live >= 30
    job.wait_for("worker0", "Saving checkpoints for")
    before = int(tf1.train.latest_checkpoint(one.folder).rpartition("-")[2])
    job.send("ps0", signal.SIGKILL)
    job.start("ps0")
    gate.touch()
    # The workers stay, and the chief restores.
    restored = job.wait_for("worker0", r"Restoring parameters from \S+model.ckpt-(\d+): 9 of 9 variables")
    assert int(restored.group(1)) >= before
    job.wait_for("worker0", r"(?s)RESULT 0 .*step: 10\(")
    for name in ("worker0", "worker1"):
        (result,) = job.results(name)
        assert (result["global_step"], result["stop_reason"]) == (100, "max_steps")
    assert int(reader(one.folder).get_tensor("global_step")) == 100
    assert_a_signal_ends_a_step_without_the_missing(job, stopped, served=True, alone=tmp_path / "alone")


def distributed(index: int = 0, **flags: Any) -> None:
    """Set the flags of a job of two workers on this machine."""
    hosts = {"worker_hosts": f"127.0.0.1:{free_port()},127.0.0.1:{free_port()}", "ps_hosts": f"127.0.0.1:{free_port()}"}
    for name, value in {"job_name": "worker", "task_index": index, **hosts, **flags}.items():
        mox.set_flag(name, value)


def test_a_taken_port_is_named_with_its_flag(train: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        distributed(1, worker_hosts=f"127.0.0.1:{free_port()},127.0.0.1:{port}")
        with pytest.raises(UsageError, match=rf"--task_index=1: entry 1 of --worker_hosts.*port {port} is taken"):
            train()


def test_an_address_of_another_machine_is_named_with_its_flag(train: Any) -> None:
    distributed(worker_hosts="192.0.2.7:2222,192.0.2.8:2222")
    with pytest.raises(UsageError, match=r"--task_index=0: entry 0 of --worker_hosts is 192\.0\.2\.7:2222, which is"):
        train()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:port", ":2222", "127.0.0.1:70000"])
def test_an_address_without_host_or_port_is_refused(train: Any, address: str) -> None:
    distributed(worker_hosts=f"127.0.0.1:{free_port()},{address}")
    with pytest.raises(UsageError, match=r"--worker_hosts: entry 1 is .*; expected host:port"):
        train()


def test_a_collective_that_another_worker_left_in_the_middle_is_no_error_of_this_one() -> None:
    broken = tf1.errors.InternalError(None, None, "Error received from peer: Delete called on non-empty BufRendezvous")
    assert is_lost(broken)
    assert is_lost(tf1.errors.CancelledError(None, None, "Collective ops is aborted by: op cancelled"))
    assert not is_lost(tf1.errors.CancelledError(None, None, "RunManyGraphs"))
    assert not is_lost(tf1.errors.InternalError(None, None, "Failed to call the py_func"))


def test_asynchronous_workers_need_parameter_servers(train: Any) -> None:
    distributed(ps_hosts="", sync_replicas=False)
    with pytest.raises(UsageError, match="--sync_replicas=false"):
        train()


def test_a_parameter_server_has_nothing_to_do_in_evaluations(linear: Any, train: Any, tmp_path: Path) -> None:
    train(log_dir=str(tmp_path))
    distributed(job_name="ps", variable_update="all_reduce")
    assert train().stop_reason == "no_servers_needed"
    result = train(run_mode=mox.ModeKeys.EVAL, log_dir=str(tmp_path), input_fn=linear.finite_input_fn)
    assert result.stop_reason == "no_servers_needed"


@pytest.mark.slow
def test_waiting_ends_after_session_timeout() -> None:
    missing = Peer("ps", 3, f"127.0.0.1:{free_port()}")
    with pytest.raises(
        WorkersLostError, match=rf"1 s \(flag --session_timeout\) from ps 3 at {missing.address}"
    ) as raised:
        wait_for([missing], 1)
    assert raised.value.code == 75


def test_the_workers_parts_of_a_data_set_are_all_of_it() -> None:
    parts, orders = [], []
    for index in range(2):
        distributed(index)
        with input_of(training=True):
            shard, seed = own_shard(None, None, shuffle=True)
        assert shard == (index, 2)
        order = EpochOrder(101, True, seed, shard)
        parts.append(order.epoch(0))
        orders.append(order.epoch(1))
    assert sorted(np.concatenate(parts)) == list(range(101))
    assert set(orders[0]) != set(parts[0])  # mixed anew, and disjoint again
    assert not set(orders[0]) & set(orders[1])


def test_only_training_input_is_divided_by_default(console: Any) -> None:
    distributed(1)
    with input_of(training=False):
        assert own_shard(None, None, shuffle=True) == ((0, 1), None)
    assert not console.lines
    assert own_shard(None, 5, shuffle=True) == ((0, 1), 5)
    assert "made outside of input_fn" in console.text
    with input_of(training=True):
        assert own_shard((3, 9), 5, shuffle=True) == ((3, 9), 5)
