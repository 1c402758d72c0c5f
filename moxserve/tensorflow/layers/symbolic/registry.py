"""`layer_register`: what makes a function a layer, called as `Layer('name', x, ...)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

from moxserve.errors import UsageError, did_you_mean
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.layers.symbolic.argscope import accepted, defaults, shape_of

__all__ = ["VariableHolder", "get_registered_layer", "layer_register"]

Function = Callable[..., Any]

_LAYERS: dict[str, list[Function]] = {}
_LOGGED: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


class VariableHolder:
    """The variables of a layer, as attributes: `out.variables.W`."""

    def __init__(self, **variables: Any) -> None:
        self.__dict__.update(variables)

    def all(self) -> list[Any]:
        """Return all of them."""
        return list(self.__dict__.values())

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no variable {name!r}; {did_you_mean(name, self.__dict__)}")


def layer_register(
    log_shape: bool = False,
    use_scope: bool | None = True,
    *,
    old_names: Mapping[str, str] | None = None,
    positional: int | None = None,
) -> Callable[[Function], Function]:
    """Return a decorator that makes a function a layer: for `argscope`, for `LinearWrap`, with a variable scope.

    ```python
    @layer_register(log_shape=True)
    def Scale(x, initial=1.0):
        return x * tf1.get_variable("factor", [], initializer=tf1.constant_initializer(initial))

    y = Scale("scale", x)      # variable scale/factor
    ```

    Args:
        log_shape: whether shapes of what goes in and out are logged, once for each scope.
        use_scope: True: the first argument of calls is the name of a variable scope. None: it may be. False: there is
            no scope, and a name is accepted with a warning.
        old_names: other names of keyword arguments, and the names of the parameters that they stand for.
        positional: how many arguments after the tensor may be given by position; None: any number.
    """

    def decorate(function: Function) -> Function:
        @wraps(function)
        def layer(*args: Any, **kwargs: Any) -> Any:
            name, inputs, rest = _split(function.__name__, args, use_scope)
            where = function.__name__ if name is None else f"{function.__name__} {name!r}"
            if positional is not None and len(rest) > positional:
                raise UsageError(f"{where}: {len(rest)} arguments by position, at most {positional}; name the others")
            given = {**defaults(layer, 1 + len(rest)), **accepted(layer, kwargs, where)}
            try:
                inspect.signature(function).bind(inputs, *rest, **given)
            except TypeError as error:
                raise UsageError(f"{where}: {error}") from error
            if name is None:
                return function(inputs, *rest, **given)
            with tf1.variable_scope(name) as scope:
                outputs = function(inputs, *rest, **given)
                if log_shape:
                    _log(scope.name, inputs, outputs)
            return outputs

        marked: Any = layer
        marked.__argscope_enabled__ = True
        marked.use_scope = use_scope
        marked.old_names = dict(old_names or {})
        register(function.__name__, layer)
        return layer

    return decorate


def register(name: str, layer: Function) -> None:
    """Give a layer a name for `LinearWrap`."""
    _LAYERS.setdefault(name, []).append(layer)


def get_registered_layer(name: str) -> Function | None:
    """Return the layer of a name, None when there is none.

    Raises:
        UsageError: there are several.
    """
    found = _LAYERS.get(name, [])
    if len({(layer.__module__, layer.__qualname__) for layer in found}) > 1:
        modules = ", ".join(sorted({layer.__module__ for layer in found}))
        raise UsageError(f"several layers are called {name!r}, in {modules}; rename one, or use .apply(layer, ...)")
    return found[-1] if found else None


def registered_names() -> list[str]:
    """Return the names of all layers."""
    return sorted(_LAYERS)


def _split(layer: str, args: tuple[Any, ...], use_scope: bool | None) -> tuple[str | None, Any, tuple[Any, ...]]:
    """Take the arguments of a call apart: the name, if any, the input, and the rest."""
    named = bool(args) and isinstance(args[0], str)
    if use_scope and not named:
        came = repr(args[0]) if args else "missing"
        raise UsageError(f"{layer}: the first argument is {came}; expected a scope's name: {layer}('name', x, ...)")
    if named and use_scope is False:
        tf1.logging.warning("%s needs no name; %r is ignored", layer, args[0])
    name = args[0] if named and use_scope is not False else None
    rest = args[1:] if named else args
    if not rest:
        raise UsageError(f"{layer}: no tensor was given")
    _check_input(layer, name, rest[0])
    return name, rest[0], rest[1:]


def _check_input(layer: str, name: str | None, inputs: Any) -> None:
    first = inputs[0] if isinstance(inputs, list | tuple) and inputs else inputs
    if not (tf.is_tensor(first) or isinstance(first, tf.Variable | tf1.Variable)):
        hint = " Did you forget to take the tensor out of a LinearWrap?" if hasattr(first, "print_tensor") else ""
        raise UsageError(
            f"{layer} {name or ''}: the input is {type(first).__name__}; expected a tensor, or a list of them.{hint}"
        )


def _log(scope: str, inputs: Any, outputs: Any) -> None:
    logged = _LOGGED.setdefault(tf1.get_default_graph(), set())
    if scope not in logged:
        logged.add(scope)
        tf1.logging.info("%s: %s -> %s", scope, shape_of(inputs), shape_of(outputs))
