"""Parameters of `function`."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from pydantic import Field

from moxserve.errors import did_you_mean
from moxserve.pipeline.slots import InputBundle, ModelPlugin, ParameterError
from moxserve.registry import check_target, load_target

__all__ = ["Function"]

_LOG = logging.getLogger(__name__)

# What the executor gives; no parameter may take its place.
_GIVEN = ("inputs", "mode", "run_mode")


class Function(ModelPlugin):
    """Your own model_fn(inputs, mode, **kwargs) -> mox.ModelSpec, from a module or a file."""

    target: str = Field(
        pattern=r".+:.+",
        description="module:function, or ./file.py:function relative to the current directory.",
    )
    params: dict[str, Any] = Field(default={}, description="Keyword arguments that the function is called with.")

    def check(self) -> Iterable[tuple[str, str]]:
        """Look for the function without running its module."""
        wrong = check_target(self.target)
        return [("target", wrong)] if wrong else []

    def build(self, data: InputBundle) -> Callable[..., Any]:
        """Import the function and bind its parameters; see ModelPlugin."""
        del data
        function = load_target(self.target)
        if not callable(function):
            raise ParameterError("model.target", f"expected a function, got {type(function).__name__}")
        if not self.params:
            return function
        self._check_parameters(function)
        return partial(function, **self.params)

    def _check_parameters(self, function: Callable[..., Any]) -> None:
        parameters = inspect.signature(function).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        names = [
            n for n, p in parameters.items() if n not in _GIVEN and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        for name in self.params:
            if name in names:
                continue
            near = did_you_mean(name, names)
            if name in _GIVEN or not takes_all:
                raise ParameterError(f"model.params.{name}", f"{self.target} takes no parameter {name!r}; {near}")
            if near.startswith("did you mean"):
                _LOG.warning("model.params.%s goes to **kwargs of %s; %s", name, self.target, near)
