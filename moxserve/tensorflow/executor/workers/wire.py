"""How a step is broken that waits for another process: TensorFlow has no call that ends one run of a session.

Each such step has an operation more, which waits beside it: for the step itself, or for the wire to be cut, in which
case it fails. An operation that fails ends its step, on all processes that take part in it, and what the step waited
for with it: a queue or an accumulator on a parameter server, a collective. The session stays open, and the variables
are what the last whole step has left.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from moxserve.tensorflow.executor.env import tf, tf1

__all__ = ["Wire"]

_CAPACITY = 1024


class Wire:
    """A wire of one session. Made while the graph is open.

    Attributes:
        session: of the run; set when it is ready.
        is_cut: whether somebody has cut it.
    """

    def __init__(self) -> None:
        self.session: Any = None
        self.is_cut = False
        self._lock = threading.Lock()
        with tf1.control_dependencies(None), tf1.device("/cpu:0"):
            self._whole = tf1.FIFOQueue(_CAPACITY, [tf.bool], [()], name="moxserve_wire")
            self._cutting = self._whole.enqueue(False)

    def beside(self, awaited: Sequence[Any]) -> Any:
        """Make the operation that is run beside a step.

        Args:
            awaited: tensors of the step that need other processes; nothing else is waited for.
        """
        with tf1.control_dependencies(None), tf1.device("/cpu:0"):
            with tf1.control_dependencies(awaited):
                released = self._whole.enqueue(True)
            whole = self._whole.dequeue()
            checked = tf.raw_ops.Assert(condition=whole, data=[tf.constant("given up: another process is waited for")])
            return tf.group(released, checked)

    def cut(self) -> None:
        """Let the step that is under way fail, or the next one; from any thread. Once is enough."""
        with self._lock:
            if self.is_cut or self.session is None:
                return
            self.is_cut = True
        with suppress(tf.errors.OpError, RuntimeError):  # the session may be closed already
            self.session.run(self._cutting)
