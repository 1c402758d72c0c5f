"""Users' functions are called whichever of the documented signatures they have."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.calls import call_with_mode, check_callable


class Callable_:
    def __call__(self, inputs: Any, run_mode: str) -> Any:
        return inputs, run_mode

    def method(self, inputs: Any, mode: str, **kwargs: Any) -> Any:
        return inputs, mode


def positional_only(inputs: Any, mode: str, /) -> Any:
    return inputs, mode


SIGNATURES: dict[str, Callable[..., Any]] = {
    "mode": lambda inputs, mode: (inputs, mode),
    "run_mode": lambda inputs, run_mode: (inputs, run_mode),
    "mode and kwargs": lambda inputs, mode, **kwargs: (inputs, mode, *kwargs)[:2],
    "another name": lambda x, m: (x, m),
    "keyword only": lambda inputs, *, mode: (inputs, mode),
    "kwargs only": lambda inputs, **kwargs: (inputs, kwargs["mode"]),
    "args": lambda *args: args,
    "defaults": lambda inputs, mode="x", scale=2: (inputs, mode),
    "positional only": positional_only,
    "partial": functools.partial(lambda scale, inputs, mode: (inputs, mode), 3),
    "object": Callable_(),
    "method": Callable_().method,
}


@pytest.mark.parametrize("case", SIGNATURES)
def test_the_mode_arrives(case: str) -> None:
    assert tuple(call_with_mode(SIGNATURES[case], ("in",), "TRAIN", "model_fn")) == ("in", "TRAIN")


def test_a_function_may_do_without_the_mode() -> None:
    assert call_with_mode(lambda: "made", (), "TRAIN", "input_fn") == "made"
    assert call_with_mode(lambda inputs: inputs, ("in",), "TRAIN", "model_fn") == "in"


def test_a_function_that_wants_more_is_explained() -> None:
    with pytest.raises(ModelSpecError, match=r"model_fn\(inputs, mode, params\) cannot be called as run does.*params"):
        call_with_mode(lambda inputs, mode, params: None, ("in",), "TRAIN", "model_fn")


def test_an_error_inside_of_the_function_stays_what_it_is() -> None:
    def input_fn(mode: str) -> None:
        raise TypeError("own mistake")

    with pytest.raises(TypeError, match="own mistake"):
        call_with_mode(input_fn, (), "TRAIN", "input_fn")


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(ModelSpecError, match=r"needs input_fn\nhint: an example"):
        check_callable(None, "input_fn", "an example")
    with pytest.raises(ModelSpecError, match="must be a function, not int"):
        check_callable(3, "input_fn", "an example")
