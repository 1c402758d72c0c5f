"""The interface that every runtime has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from moxserve.serving.backends.calls import CallSignature
from moxserve.types import Signature

__all__ = ["Backend", "LoadOptions", "TfliteOptions"]


@dataclass(frozen=True)
class TfliteOptions:
    """How TFLite models run.

    Attributes:
        pools: requests at once; 0 takes one a CPU.
        interpreters_per_pool: above 1, a large batch is cut into pieces, and so many of them run at once.
    """

    pools: int = 0
    interpreters_per_pool: int = 1


@dataclass(frozen=True)
class LoadOptions:
    """How a version is loaded.

    Attributes:
        tags: tag set of the MetaGraph to take from a SavedModel.
        intra_op_threads: threads inside one operation; 0 lets the runtime decide.
        inter_op_threads: operations at once; 0 lets the runtime decide.
        gpu_memory_fraction: share of a GPU's memory to take at once; 0 lets the runtime decide.
        platform: the model's platform in the configuration: `onnx`, `openvino` or `tflite` hold it to that runtime;
            `tensorflow`, which every configuration of tensorflow_model_server says, and nothing hold it to none.
        backend: `auto` for the fastest form of the model in its directory, or the runtime that is to serve it:
            `tensorflow`, `onnx`, `openvino`, `tflite`.
        prefer_tflite: serve `model.tflite` where the version directory has one.
        tflite: how TFLite models run.
        session_config: a serialized ConfigProto to begin with; the options above then overwrite its fields.
        mixed_precision: `bfloat16` has TensorFlow compute in it where that is safe; empty for not.
        freeze: turn the variables of a SavedModel into constants where no signature can change them.
        op_libraries: shared objects with custom operations to load before the first graph.
        load_op_libraries: also load those that a version brings: native code, run with the server's rights.
    """

    tags: tuple[str, ...] = ("serve",)
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    gpu_memory_fraction: float = 0.0
    platform: str = ""
    backend: str = "auto"
    prefer_tflite: bool = False
    tflite: TfliteOptions = field(default_factory=TfliteOptions)
    session_config: bytes = b""
    mixed_precision: str = ""
    freeze: bool = False
    op_libraries: tuple[str, ...] = ()
    load_op_libraries: bool = False


@runtime_checkable
class Backend(Protocol):
    """A loaded version of a model. `run` may be called from many threads at once.

    Attributes:
        platform: name of the runtime, such as `tensorflow`.
        variant: name of the form of the model that runs, such as `saved_model` or `onnx_int8`.
        signatures: what can be called, by key.
        calls: the same, with defaults of inputs and the rules of a request.
        signature_defs: SignatureDefMap message of `moxserve.protocol.messages`, for GetModelMetadata.
    """

    platform: str
    variant: str
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

    def run_here(
        self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run one signature that is known to be quick, without other threads where the runtime can; see `run`.

        A run of some microseconds costs several times that when its operations are handed to another thread.
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
