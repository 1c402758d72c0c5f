"""A transport without a server, for the tests of code that uses the client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moxserve.client.calls import (
    Array,
    Call,
    ListCall,
    ListedModel,
    ListReply,
    MetadataCall,
    ModelMetadata,
    PredictCall,
    PredictReply,
    ReloadCall,
    ReloadReply,
    Reply,
    StatusReply,
    VersionStatus,
)
from moxserve.errors import RequestError
from moxserve.protocol.tensors import to_array
from moxserve.types import DEFAULT_SIGNATURE, PREDICT_METHOD, Signature, TensorSpec, dtype_of

__all__ = ["MockTransport"]

Answer = Callable[[Mapping[str, Array]], Mapping[str, Any]]


class MockTransport:
    """Answers every model name from a function.

        client = Client(MockTransport(lambda inputs: {"y": inputs["x"] * 2}, x=np.zeros([1, 3], np.float32)))
        client.predict("any", [[1.0, 2.0, 3.0]])

    Args:
        answer: takes the inputs by alias, gives the outputs. What it raises reaches the caller; raise a `RequestError`
            or `ServerUnreachableError` to see how your code takes it.
        signature: what the model expects; None makes one from the examples.
        version: the version that answers.
        **examples: one example an input; the signature takes its dtype and shape, with a free first dimension.

    Attributes:
        calls: what was asked, in order.
    """

    def __init__(
        self, answer: Answer, *, signature: Signature | None = None, version: int = 1, **examples: Any
    ) -> None:
        self.target = "mock"
        self.calls: list[Call] = []
        self._answer = answer
        self._version = version
        self._signature = signature or _example_signature(answer, examples)

    def handle(self, call: Call) -> Reply:
        """Answer one call.

        Raises:
            RequestError: another signature or version is asked for.
        """
        self.calls.append(call)
        if isinstance(call, ReloadCall):
            return ReloadReply()
        if isinstance(call, ListCall):
            return ListReply([ListedModel("mock")])
        if call.model.version not in (None, self._version):
            raise RequestError(f"mock has only version {self._version}", status="NOT_FOUND", target=self.target)
        if isinstance(call, MetadataCall):
            return ModelMetadata(call.model.name, self._version, {self._signature.name: self._signature})
        if not isinstance(call, PredictCall):
            return StatusReply([VersionStatus(self._version, "AVAILABLE")])
        if call.signature_name != self._signature.name:
            raise RequestError(
                f"mock has only signature {self._signature.name!r}", status="FAILED_PRECONDITION", target=self.target
            )
        outputs = {alias: to_array(value) for alias, value in self._answer(call.inputs).items()}
        return PredictReply({alias: outputs[alias] for alias in call.outputs or outputs}, self._version)

    def close(self) -> None:
        """Nothing to release."""


def _example_signature(answer: Answer, examples: Mapping[str, Any]) -> Signature:
    arrays = {alias: to_array(value) for alias, value in examples.items()}
    outputs = {alias: to_array(value) for alias, value in answer(arrays).items()} if arrays else {}
    return Signature(DEFAULT_SIGNATURE, PREDICT_METHOD, _free_specs(arrays), _free_specs(outputs))


def _free_specs(arrays: Mapping[str, Array]) -> dict[str, TensorSpec]:
    return {
        alias: TensorSpec(alias, dtype_of(array), (None, *array.shape[1:]) if array.ndim else ())
        for alias, array in arrays.items()
    }
