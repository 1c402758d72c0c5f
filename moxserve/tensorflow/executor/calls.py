"""Calling a user's functions, whichever of the documented signatures they have."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from moxserve.errors import ModelSpecError

__all__ = ["call_with_mode", "check_callable"]

_MODE_NAMES = ("mode", "run_mode")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check_callable(function: Any, name: str, example: str) -> None:
    """Check that an argument of `run` is a function.

    Args:
        function: what was given.
        name: name of the argument.
        example: a line that shows how it looks, for the message.

    Raises:
        ModelSpecError: it is None or cannot be called.
    """
    if function is None:
        raise ModelSpecError(f"run() needs {name}", hint=example)
    if not callable(function):
        raise ModelSpecError(f"{name} must be a function, not {type(function).__name__}", hint=example)


def call_with_mode(function: Callable[..., Any], leading: tuple[Any, ...], mode: str, name: str) -> Any:
    """Call `input_fn(mode)` or `model_fn(inputs, mode)`, the mode parameter named `mode`, `run_mode` or anything.

    Args:
        function: the user's function; may take `**kwargs`.
        leading: positional arguments before the mode.
        mode: one of ModeKeys.
        name: what to call it in messages.

    Raises:
        ModelSpecError: the function cannot take these arguments.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a C function that does not tell: the documented order
        return function(*leading, mode)
    parameters = list(signature.parameters.values())
    named = next((p.name for p in parameters if p.name in _MODE_NAMES and p.kind != p.VAR_KEYWORD), None)
    args: tuple[Any, ...] = leading
    kwargs: dict[str, Any] = {}
    if named is not None and signature.parameters[named].kind != inspect.Parameter.POSITIONAL_ONLY:
        kwargs[named] = mode
    elif _takes_positional(parameters, len(leading) + 1):
        args = (*leading, mode)
    elif any(p.kind == p.VAR_KEYWORD for p in parameters):
        kwargs["mode"] = mode
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        expected = f"def {name}({'inputs, ' if leading else ''}mode, **kwargs):"
        raise ModelSpecError(f"{name}{signature} cannot be called as run does: {error}", hint=expected) from error
    return function(*args, **kwargs)


def _takes_positional(parameters: list[inspect.Parameter], count: int) -> bool:
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return True
    return sum(p.kind in _POSITIONAL for p in parameters) >= count
