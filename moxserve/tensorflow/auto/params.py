"""ParamSpec: hyper-parameters by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from moxserve.errors import UsageError, did_you_mean

__all__ = ["ParamSpec", "giving"]


class ParamSpec:
    """Hyper-parameters by name: `ParamSpec(learning_rate=0.1, momentum=0.9).momentum`.

    The names are free; `learning_rate` is the one that a search can find without a list, `batch_size` the one that it
    hands to `mox.run`. Two with the same values are equal. Values never change: `replace` gives another one.

    Args:
        **params: value of each parameter; in a `param_list_spec` a list of values to try.
    """

    def __init__(self, **params: Any) -> None:
        self.__dict__["_params"] = dict(params)

    def __getattr__(self, name: str) -> Any:
        params = self.__dict__.get("_params", {})
        if name.startswith("__") or name not in params:
            raise AttributeError(f"param_spec has no parameter {name!r}; {did_you_mean(name, params)}")
        return params[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a ParamSpec does not change; param_spec.replace({name}={value!r}) gives another one")

    def __contains__(self, name: object) -> bool:
        return name in self._params

    def __iter__(self) -> Iterator[str]:
        return iter(self._params)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ParamSpec) and self._params == other._params

    def __hash__(self) -> int:
        return hash(tuple(sorted((name, repr(value)) for name, value in self._params.items())))

    def __repr__(self) -> str:
        return f"ParamSpec({', '.join(f'{name}={value!r}' for name, value in self._params.items())})"

    def as_dict(self) -> dict[str, Any]:
        """Give the values by name, in the order in which they were given."""
        return dict(self._params)

    def get(self, name: str, default: Any = None) -> Any:
        """Look a value up that may be missing."""
        return self._params.get(name, default)

    def replace(self, **params: Any) -> ParamSpec:
        """Give a ParamSpec with some values changed or added."""
        return ParamSpec(**{**self._params, **params})


def giving(function: Any, spec: ParamSpec, name: str) -> Any:
    """Give a function of the user's that gets `param_spec` by keyword, if it takes it.

    Args:
        function: the user's; None, and lists of functions (one per loss), are allowed.
        spec: what it gets.
        name: the argument, for the message.

    Raises:
        UsageError: it is no function.
    """
    if isinstance(function, (list, tuple)):
        return [giving(one, spec, name) for one in function]
    if function is None:
        return None
    if not callable(function):
        raise UsageError(f"{name} must be a function, not {type(function).__name__}")
    return partial(function, param_spec=spec) if _takes(function, "param_spec") else function


def _takes(function: Callable[..., Any], name: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.kind == p.VAR_KEYWORD or (p.name == name and p.kind != p.POSITIONAL_ONLY) for p in parameters)
