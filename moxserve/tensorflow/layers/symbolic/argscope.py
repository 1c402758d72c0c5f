"""`argscope`: arguments that layers take by default inside a `with`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from types import ModuleType
from typing import Any

from moxserve.errors import UsageError, did_you_mean
from moxserve.tensorflow.executor.env import tf1

__all__ = ["argscope", "enable_argscope_for_function", "enable_argscope_for_module", "get_arg_scope"]

Function = Callable[..., Any]

_SCOPE: ContextVar[Mapping[Function, Mapping[str, Any]] | None] = ContextVar("argscope", default=None)
_ENABLED = "__argscope_enabled__"


@contextmanager
def argscope(layers: Any, **arguments: Any) -> Iterator[None]:
    """Let layers take some arguments by default.

    Scopes may be nested: the inner one wins, and arguments of a call win over both. After the `with`, also after an
    exception, everything is as before.

    Args:
        layers: a layer, or a list of layers: tensorpack-named ones, those of `layer_register`, and functions out of
            `enable_argscope_for_function`.
        **arguments: their arguments; old names (`nl`, `out_channel`) will do.

    Raises:
        UsageError: one of them is no layer, or has no such argument.
    """
    listed = list(layers) if isinstance(layers, list | tuple) else [layers]
    scope = dict(_SCOPE.get() or {})
    for layer in listed:
        if not getattr(layer, _ENABLED, False):
            name = getattr(layer, "__name__", repr(layer))
            raise UsageError(
                f"argscope: {name} is no layer; register it with @layer_register(), or wrap it with "
                "enable_argscope_for_function"
            )
        scope[layer] = {**scope.get(layer, {}), **accepted(layer, arguments, "argscope")}
    token = _SCOPE.set(scope)
    try:
        yield
    finally:
        _SCOPE.reset(token)


def get_arg_scope() -> dict[str, dict[str, Any]]:
    """Return what the current scopes say: arguments by the layers' names."""
    return {layer.__name__: dict(arguments) for layer, arguments in (_SCOPE.get() or {}).items()}


def enable_argscope_for_function(function: Function, log_shape: bool = True) -> Function:
    """Return a function that takes arguments of `argscope` too.

    Args:
        function: whose first argument is a tensor, such as `tf.nn.relu`.
        log_shape: whether shapes of tensors in and out are logged, once for each `name` it is given.

    Raises:
        UsageError: it cannot be called.
    """
    if not callable(function):
        raise UsageError(f"enable_argscope_for_function({function!r}): not a function")
    logged: set[str] = set()

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        given = {**defaults(wrapped, len(args)), **kwargs}
        result = function(*args, **given)
        name = str(given.get("name") or function.__name__)
        if log_shape and args and name not in logged:
            logged.add(name)
            tf1.logging.info("%s: %s -> %s", name, shape_of(args[0]), shape_of(result))
        return result

    enabled: Any = wrapped
    setattr(enabled, _ENABLED, True)
    return wrapped


def enable_argscope_for_module(module: ModuleType, log_shape: bool = True) -> None:
    """Replace every public function of a module by one that takes arguments of `argscope` too.

    Args:
        module: a module of your own, or such as `tf.compat.v1.layers`.
        log_shape: see `enable_argscope_for_function`.
    """
    for name in dir(module):
        function = getattr(module, name, None)
        if inspect.isfunction(function) and not name.startswith("_") and not getattr(function, _ENABLED, False):
            setattr(module, name, enable_argscope_for_function(function, log_shape))


def defaults(layer: Function, positional: int) -> dict[str, Any]:
    """Return what the scopes say for a layer.

    Args:
        layer: as it was given to `argscope`.
        positional: how many arguments the call gave by position; those win.
    """
    arguments = (_SCOPE.get() or {}).get(layer, {})
    if not arguments:
        return {}
    taken = list(inspect.signature(layer).parameters)[:positional]
    return {name: value for name, value in arguments.items() if name not in taken}


def accepted(layer: Function, arguments: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return arguments under their present names.

    Args:
        layer: that gets them.
        arguments: under present or old names.
        where: who asks, for messages.

    Raises:
        UsageError: the layer has no such argument, or one was given under both names.
    """
    old_names = getattr(layer, "old_names", {})
    parameters = inspect.signature(layer).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named: dict[str, Any] = {}
    for name, value in arguments.items():
        present = name if name in parameters else old_names.get(name, name)
        if present in named:
            raise UsageError(f"{where}: {layer.__name__} got {present!r} twice, once under an old name")
        if present not in parameters and not anything:
            known = [*list(parameters)[1:], *old_names]
            raise UsageError(f"{where}: {layer.__name__} has no argument {name!r}; {did_you_mean(name, known)}")
        named[present] = value
    return named


def shape_of(value: Any) -> Any:
    """Return the shape of a tensor, or of the first of several, for the log."""
    first = value[0] if isinstance(value, list | tuple) and value else value
    return getattr(first, "shape", type(first).__name__)
