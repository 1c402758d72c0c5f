"""`LinearWrap`: a chain of layers, written as one."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from moxserve.errors import UsageError, did_you_mean
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.layers.symbolic.registry import get_registered_layer, registered_names

__all__ = ["LinearWrap"]


class UnknownLayerError(UsageError, AttributeError):
    """A chain goes on with something that is no layer. Also an AttributeError, for `hasattr`."""


class LinearWrap:
    """A tensor whose methods are the layers.

    ```python
    logits = (LinearWrap(images)
              .Conv2D('conv0', 32, 3)
              .tf.nn.relu()
              .apply(squeeze_and_excite, ratio=4)
              .FullyConnected('fc', 10)())
    ```

    `.Layer('name', ...)` is `Layer('name', tensor, ...)`; `.tf` is TensorFlow, whose functions get the tensor first (a
    name that TensorFlow 2 lacks is looked for in `tf.compat.v1`); calling the chain ends it and gives the tensor.
    """

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def __getattr__(self, name: str) -> Callable[..., LinearWrap]:
        if name.startswith("_"):  # protocols that Python and NumPy look for
            raise AttributeError(name)
        layer = get_registered_layer(name)
        if layer is None:
            raise UnknownLayerError(
                f"LinearWrap.{name}: neither a layer nor 'tf' ({did_you_mean(name, [*registered_names(), 'tf'])}). "
                "Did you forget to extract the tensor, with () at the end of the chain?"
            )

        def call(*args: Any, **kwargs: Any) -> LinearWrap:
            if args and isinstance(args[0], str):
                return LinearWrap(layer(args[0], self._tensor, *args[1:], **kwargs))
            return LinearWrap(layer(self._tensor, *args, **kwargs))

        return call

    @property
    def tf(self) -> Any:
        """TensorFlow's functions, on the tensor."""
        return _Functions([tf, tf1], self._tensor)

    def apply(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> LinearWrap:
        """Return a chain with `function(tensor, *args, **kwargs)`."""
        return LinearWrap(function(self._tensor, *args, **kwargs))

    def apply2(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> LinearWrap:
        """Return a chain with `function(args[0], tensor, *args[1:], **kwargs)`."""
        if not args:
            raise UsageError("LinearWrap.apply2: no first argument for the function; the tensor is the second one")
        return LinearWrap(function(args[0], self._tensor, *args[1:], **kwargs))

    def __call__(self) -> Any:
        """Return the tensor."""
        return self._tensor

    def tensor(self) -> Any:
        """Return the tensor."""
        return self._tensor

    def print_tensor(self) -> LinearWrap:
        """Log the tensor's name and shape, and go on."""
        tf1.logging.info("%s", self._tensor)
        return self


class _Functions:
    """One module under two homes: a function of the first that has it, called with a tensor in front."""

    def __init__(self, modules: list[ModuleType], tensor: Any) -> None:
        self._modules = modules
        self._tensor = tensor

    def __getattr__(self, name: str) -> Any:
        found = [getattr(module, name) for module in self._modules if hasattr(module, name)]
        if not found:
            raise AttributeError(f"{self._modules[0].__name__} has no {name!r}")
        if isinstance(found[0], ModuleType):
            return _Functions([f for f in found if isinstance(f, ModuleType)], self._tensor)
        function = found[0]
        return lambda *args, **kwargs: LinearWrap(function(self._tensor, *args, **kwargs))
