"""Datapoints of other processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.dataflow import DataFromList
from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.input_source import StagingInput, ZMQInput

pytest.importorskip("zmq")
ROWS = [[np.full([2], i, np.float32)] for i in range(12)]


@pytest.fixture
def sender(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Send rows to an address in a thread; returns the address."""
    from moxserve.dataflow import send_dataflow_zmq

    threads: list[threading.Thread] = []

    def start(passes: int | None = 1) -> str:
        address = f"ipc://{tmp_path / 'input.sock'}"

        def send() -> None:
            try:
                send_dataflow_zmq(DataFromList(ROWS, shuffle=False), address, passes=passes, timeout_s=2)
            except Exception:  # noqa: BLE001 - the receiver has left
                return

        threads.append(threading.Thread(target=send, name="sender"))
        threads[-1].start()
        return address

    yield start
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


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
    source = ZMQInput(sender())
    with pytest.raises(UsageError, match="needs types"):
        source.to_dataset()
    with tf1.Graph().as_default():
        (value,) = tf1.data.make_one_shot_iterator(source.to_dataset([tf.float32])).get_next()
        with tf1.Session() as session:
            assert [session.run(value)[0] for _ in range(12)] == list(range(12))
    source.close()
