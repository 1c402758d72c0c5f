"""Datapoints of other processes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.dataflow import DataFlowTerminated, DataFromList
from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.input_source import StagingInput, ZMQInput

pytest.importorskip("zmq")
ROWS = [[np.full([2], i, np.float32)] for i in range(12)]


class Rows(DataFromList):
    """The rows, until it is over."""

    def __init__(self) -> None:
        super().__init__(ROWS, shuffle=False)
        self.over = threading.Event()

    def __iter__(self) -> Iterator[Any]:
        for row in super().__iter__():
            if self.over.is_set():
                raise RuntimeError("it is over")
            yield row


@pytest.fixture
def sender(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Send rows to an address in a thread; returns the address."""
    from moxserve.dataflow import RemoteDataZMQ, send_dataflow_zmq

    threads: list[threading.Thread] = []
    rows, address = Rows(), f"ipc://{tmp_path / 'input.sock'}"

    def start(passes: int | None = 1) -> str:
        def send() -> None:
            with contextlib.suppress(RuntimeError):
                send_dataflow_zmq(rows, address, passes=passes)

        threads.append(threading.Thread(target=send, name="sender"))
        threads[-1].start()
        return address

    yield start
    rows.over.set()
    left = RemoteDataZMQ(address)  # a sender may wait for somebody who takes what it has sent
    left.reset_state()

    def take() -> None:
        with contextlib.suppress(DataFlowTerminated):
            list(left)

    taker = threading.Thread(target=take, name="taker")
    taker.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    left.close()
    taker.join(120)
    assert not taker.is_alive()


def test_what_is_sent_is_trained_on_to_the_end(sender: Any, model: Any) -> None:
    address = sender()
    result = model.run(lambda mode: ZMQInput(address))
    assert (result.stop_reason, result.local_steps) == ("end_of_input", 3)
    assert model.flat() == [float(i) for i in range(12) for _ in range(2)]
    assert model.shapes["TRAIN"] == [[4, 2]]


@pytest.mark.slow
def test_a_run_leaves_a_sender_that_never_ends(sender: Any, model: Any) -> None:
    address = sender(passes=None)
    signature = [tf.TensorSpec([2], tf.float32, "x")]
    source = StagingInput(ZMQInput(address, hwm=4, signature=signature))
    result = model.run(lambda mode: source, max_number_of_steps=10)
    assert result.stop_reason == "max_steps"
    assert len(model.seen["TRAIN"]) == 10


def test_as_a_dataset(sender: Any) -> None:
    source = ZMQInput(sender(passes=None))
    with pytest.raises(UsageError, match="needs types"):
        source.to_dataset()
    with tf1.Graph().as_default():
        (value,) = tf1.data.make_one_shot_iterator(source.to_dataset([tf.float32])).get_next()
        with tf1.Session() as session:
            assert [session.run(value)[0] for _ in range(12)] == list(range(12))
    source.close()
