"""The interface that every runtime has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from moxserve.serving.backends.calls import CallSignature
from moxserve.types import Signature

__all__ = ["Backend", "LoadOptions"]


@dataclass(frozen=True)
class LoadOptions:
    """How a version is loaded.

    Attributes:
        tags: tag set of the MetaGraph to take from a SavedModel.
        intra_op_threads: threads inside one operation; 0 lets the runtime decide.
        inter_op_threads: operations at once; 0 lets the runtime decide.
        gpu_memory_fraction: share of a GPU's memory to take at once; 0 lets the runtime decide.
    """

    tags: tuple[str, ...] = ("serve",)
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    gpu_memory_fraction: float = 0.0


@runtime_checkable
class Backend(Protocol):
    """A loaded version of a model. `run` may be called from many threads at once.

    Attributes:
        platform: name of the runtime, such as `tensorflow`.
        signatures: what can be called, by key.
        calls: the same, with defaults of inputs and the rules of a request.
        signature_defs: SignatureDefMap message of `moxserve.protocol.messages`, for GetModelMetadata.
    """

    platform: str
    signatures: Mapping[str, Signature]
    calls: Mapping[str, CallSignature]
    signature_defs: Any

    def run(
        self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run one signature.

        Args:
            signature: key of `signatures`.
            inputs: by alias; an input with a default may be left out.
            outputs: aliases to compute; None or empty computes all.

        Returns:
            One array an output, by alias; strings as object arrays of bytes.

        Raises:
            ServingError: the request does not fit the signature, or the model failed; with the status that says so.
        """
        ...

    def run_together(self, signatures: Sequence[str], array: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Run several signatures at once, with one array for every input of each: what they share runs once.

        Args:
            signatures: keys of `signatures`.
            array: for all inputs.

        Returns:
            The outputs of each signature, in their order; see `run`.

        Raises:
            ServingError: as of `run`.
        """
        ...

    def close(self) -> None:
        """Free the model's memory. No run may be under way, none may follow."""
        ...
