"""Python functions in input pipelines, which TensorFlow calls from threads of its own.

A program may end while a session still reads ahead. The interpreter must not go while such a call is under way: the
thread would never come back to TensorFlow, which would wait for it for ever. See `moxserve.images.ending`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

from moxserve.images.ending import before_the_end
from moxserve.tensorflow.executor.env import tf

__all__ = ["python_function", "steps"]


def python_function(function: Callable[..., Any], inputs: Sequence[Any], types: Any, stateful: bool = True) -> Any:
    """Make an operation of a function of NumPy arrays, as `tf.numpy_function` does; no call outlives the program.

    Args:
        function: takes and returns arrays.
        inputs: its arguments, tensors.
        types: dtype of what it returns, or one for each.
        stateful: whether it may return something else for the same arguments.
    """

    @wraps(function)
    def called(*arguments: Any) -> Any:
        with before_the_end():
            return function(*arguments)

    return tf.numpy_function(called, inputs, types, stateful=stateful)


def steps(generator: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Make a function for `tf.data.Dataset.from_generator` of another, no step of which outlives the program."""

    def iterate(*arguments: Any) -> Iterator[Any]:
        inner = generator(*arguments)
        try:
            while True:
                with before_the_end():
                    try:
                        value = next(inner)
                    except StopIteration:
                        return
                yield value
        finally:
            close = getattr(inner, "close", None)
            if close is not None:
                close()

    return iterate
