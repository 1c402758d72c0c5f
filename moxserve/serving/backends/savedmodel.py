"""SavedModels of TF1, TF2 and Keras, run by a TensorFlow session over the MetaGraph's SignatureDefs.

A session callable feeds graph tensors without looking at their static shapes, as tensorflow_model_server does, and
costs a quarter of `Session.run`. Each set of outputs has its own callable, so only the part of the graph that is asked
for runs. Variables of a version live in its own session and graph: closing them gives the memory back.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moxserve.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    MissingExtraError,
    NotFound,
    ServingError,
    Unimplemented,
    UnknownError,
    first_line,
    serving_error,
)
from moxserve.light import keras_when_used
from moxserve.protocol import messages
from moxserve.protocol.metadata import signatures_from_map
from moxserve.serving.backends.base import LoadOptions
from moxserve.serving.backends.calls import CallSignature, checked, find_call
from moxserve.serving.backends.freeze import frozen_graph
from moxserve.serving.backends.op_libraries import explained, load_op_libraries
from moxserve.serving.backends.saved_signatures import no_such_tags
from moxserve.serving.cpus import cpus, shared
from moxserve.types import INIT_SIGNATURE, Signature, TensorSpec

__all__ = ["SavedModelBackend"]

logger = logging.getLogger(__name__)

_MAX_PROGRAMS = 256
# What RunOptions.inter_op_thread_pool means by it.
_CALLING_THREAD = -1


@dataclass(frozen=True, slots=True)
class _Program:
    """One compiled way through the graph.

    Attributes:
        feeds: alias, element type and, where it matters, rank of each argument of `call`, in order.
        call: the session callable.
        call_here: the same, but its operations run on the calling thread alone.
        fetched: output aliases in the order of the results of `call`.
        passed: output alias -> input alias, for outputs that are inputs handed through.
    """

    feeds: tuple[tuple[str, np.dtype[Any], int | None], ...]
    call: Callable[..., list[Any]]
    call_here: Callable[..., list[Any]]
    fetched: tuple[str, ...]
    passed: Mapping[str, str]


class SavedModelBackend:
    """A SavedModel in a session of its own. See `Backend` for the interface.

    Args:
        path: the version directory.
        options: tags, threads, GPU memory.

    Attributes:
        frozen: whether its variables were turned into constants.

    Raises:
        MissingExtraError: TensorFlow is not installed.
        NotFound: the directory holds no SavedModel, or none with these tags.
        ServingError: TensorFlow cannot load it.
    """

    platform = "tensorflow"
    variant = "saved_model"

    def __init__(self, path: str, options: LoadOptions) -> None:
        tf = _import_tensorflow()
        _check_directory(path)
        load_op_libraries(path, options)
        self._tf = tf
        self._graph = tf.Graph()
        config = _session_config(tf, options)
        self._session = tf.compat.v1.Session(graph=self._graph, config=config)
        try:
            meta_graph = _load_allowed(tf, self._session, path, options)
            self.signature_defs = _signature_map(meta_graph)
            self._convolves = _convolves(meta_graph.graph_def)
            self._graph.finalize()
        except BaseException:
            self._session.close()
            raise
        self.frozen = options.freeze and self._freeze(config)
        self.signatures: Mapping[str, Signature] = {
            name: signature
            for name, signature in signatures_from_map(self.signature_defs).items()
            if name != INIT_SIGNATURE
        }
        definitions = self.signature_defs.signature_def
        self.calls: Mapping[str, CallSignature] = {
            name: CallSignature.from_def(s, definitions[name]) for name, s in self.signatures.items()
        }
        self._programs: dict[tuple[str, tuple[str, ...]], _Program] = {}
        self._lock = threading.Lock()

    def _freeze(self, config: Any) -> bool:
        """Go over to a graph without variables, if there may be one; tell whether that was done."""
        found = [s for name, s in signatures_from_map(self.signature_defs).items() if name != INIT_SIGNATURE]
        outputs = {spec.tensor for signature in found for spec in signature.outputs.values()}
        inputs = {spec.tensor for signature in found for spec in signature.inputs.values()}
        try:
            graph_def = frozen_graph(self._tf, self._session, outputs, inputs)
            if graph_def is None:
                return False
            graph = self._tf.Graph()
            with graph.as_default():
                self._tf.import_graph_def(graph_def, name="")
            graph.finalize()
        except (self._tf.errors.OpError, ValueError, KeyError) as error:
            # Serving it as it is loses speed only.
            logger.warning("the graph is not frozen: %s", first_line(error))
            return False
        self._session.close()
        self._graph, self._session = graph, self._tf.compat.v1.Session(graph=graph, config=config)
        return True

    def run(
        self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run one signature; see `Backend.run`."""
        call = find_call(self.calls, signature)
        call.match_inputs(inputs)
        return self._run(call, inputs, call.match_outputs(outputs))

    def run_here(
        self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run one signature; see `Backend.run_here`."""
        call = find_call(self.calls, signature)
        call.match_inputs(inputs)
        return self._run(call, inputs, call.match_outputs(outputs), here=True)

    def run_together(self, signatures: Sequence[str], array: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Run several signatures at once; see `Backend.run_together`."""
        calls = [find_call(self.calls, name) for name in signatures]
        # One signature that feeds and fetches the tensors of all, each once, under their own names.
        inputs = {spec.tensor: spec for call in calls for spec in call.signature.inputs.values()}
        outputs = {spec.tensor: spec for call in calls for spec in call.signature.outputs.values()}
        joint = CallSignature(Signature("\0".join(signatures), "", inputs, outputs))
        found = self._run(joint, dict.fromkeys(inputs, array), joint.output_names)
        return [{alias: found[spec.tensor] for alias, spec in call.signature.outputs.items()} for call in calls]

    def _run(
        self, call: CallSignature, inputs: Mapping[str, np.ndarray], names: tuple[str, ...], *, here: bool = False
    ) -> dict[str, np.ndarray]:
        program = self._programs.get((call.signature.name, names)) or self._compile(call, names)
        if call.defaults:
            inputs = {**call.defaults, **inputs}
        arguments = [
            _ranked(checked(inputs[alias], dtype, i, alias), rank, call.signature.inputs[alias])
            for i, (alias, dtype, rank) in enumerate(program.feeds)
        ]
        try:
            values = program.call_here(*arguments) if here else program.call(*arguments)
        except self._tf.errors.OpError as error:
            raise serving_error(error.error_code, error.message) from None
        except UnicodeDecodeError as error:
            # TensorFlow puts the bytes that it could not parse into its message, then fails to turn that into text and
            # loses the status. Only what a request sent can be such bytes.
            raise InvalidArgument(error.object.decode("utf-8", "replace")) from None
        found = dict(zip(program.fetched, map(_as_array, values), strict=True))
        if program.passed:
            found.update({alias: inputs[source] for alias, source in program.passed.items()})
            return {alias: found[alias] for alias in names}
        return found

    def close(self) -> None:
        """Free the session with its variables, and the graph."""
        self._programs.clear()
        self._session.close()
        self._graph = None

    def _compile(self, call: CallSignature, names: tuple[str, ...]) -> _Program:
        key = (call.signature.name, names)
        with self._lock:
            program = self._programs.get(key)
            if program is None:
                program = self._make_program(call, names)
                while len(self._programs) >= _MAX_PROGRAMS:
                    # Each subset of outputs that a client asks for makes one: forget the oldest, it can be made again.
                    self._programs.pop(next(iter(self._programs)))
                self._programs[key] = program
        return program

    def _make_program(self, call: CallSignature, names: tuple[str, ...]) -> _Program:
        inputs, outputs = call.signature.inputs, call.signature.outputs
        feeds = {spec.tensor: alias for alias, spec in inputs.items()}
        passed = {alias: feeds[outputs[alias].tensor] for alias in names if outputs[alias].tensor in feeds}
        fetched = tuple(alias for alias in names if alias not in passed)
        # Two aliases may mean one tensor; the callable wants each feed once.
        feed_tensors = [spec.tensor for spec in inputs.values()]
        if len(set(feed_tensors)) != len(feed_tensors):
            raise FailedPrecondition(
                f"signature {call.signature.name!r} feeds one tensor through several inputs: {', '.join(feed_tensors)}"
            )
        from tensorflow.core.protobuf import config_pb2

        options = config_pb2.CallableOptions(feed=feed_tensors, fetch=[outputs[alias].tensor for alias in fetched])
        here = config_pb2.CallableOptions()
        here.CopyFrom(options)
        here.run_options.inter_op_thread_pool = _CALLING_THREAD
        try:
            tensors = [self._graph.get_tensor_by_name(name) for name in feed_tensors]
            dtypes = [np.dtype(tensor.dtype.as_numpy_dtype) for tensor in tensors]
            ranks = [tensor.shape.rank if self._convolves else None for tensor in tensors]
            # TensorFlow refuses to run nothing, which is what a signature that only hands its inputs through needs.
            make = self._session._make_callable_from_options if fetched else _no_fetch
            compiled, compiled_here = make(options), make(here)
        except self._tf.errors.OpError as error:
            raise serving_error(error.error_code, error.message) from None
        except (KeyError, ValueError) as error:
            raise FailedPrecondition(
                f"signature {call.signature.name!r} names a tensor that the graph does not have: {error}"
            ) from None
        return _Program(tuple(zip(inputs, dtypes, ranks, strict=True)), compiled, compiled_here, fetched, passed)


def _no_fetch(options: Any) -> Callable[..., list[Any]]:  # noqa: ARG001 - as the session's own
    return lambda *_: []


def _import_tensorflow() -> Any:
    try:
        with keras_when_used():
            import tensorflow as tf
    except ImportError as error:
        if error.name != "tensorflow":
            raise
        raise MissingExtraError("tensorflow", "serve", "serving a SavedModel") from None
    return tf


def _check_directory(path: str) -> None:
    if any(os.path.isfile(os.path.join(path, name)) for name in ("saved_model.pb", "saved_model.pbtxt")):
        return
    if os.path.isfile(os.path.join(path, "export.meta")):
        raise Unimplemented("Session Bundle is deprecated and removed.")
    raise NotFound(
        "Specified file path does not appear to contain a SavedModel bundle (should have a file called "
        f"`saved_model.pb`)\nSpecified file path: {path}"
    )


def _session_config(tf: Any, options: LoadOptions) -> Any:
    config = tf.compat.v1.ConfigProto.FromString(options.session_config)
    # Alone on the machine, TensorFlow decides; one of several server processes takes its part.
    part = cpus() if shared() else 0
    config.intra_op_parallelism_threads = options.intra_op_threads or part
    config.inter_op_parallelism_threads = options.inter_op_threads or part
    config.gpu_options.per_process_gpu_memory_fraction = options.gpu_memory_fraction
    if options.mixed_precision == "bfloat16":
        from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

        config.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 = RewriterConfig.ON
    return config


def _load_allowed(tf: Any, session: Any, path: str, options: LoadOptions) -> Any:
    try:
        return _load_meta_graph(tf, session, path, options.tags)
    except ServingError as error:
        raise explained(error, path, options) from error


def _load_meta_graph(tf: Any, session: Any, path: str, tags: Sequence[str]) -> Any:
    """Restore a MetaGraph into the session: variables, then asset feeds and the main op.

    Raises:
        NotFound: no MetaGraph has just these tags.
        DataLoss: saved_model.pb cannot be read.
        ServingError: with TensorFlow's own status.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.python.util import deprecation

    # The function is deprecated for those who build models; there is no other that gives all SignatureDefs of both
    # kinds of SavedModel, so its warning would only alarm operators.
    with session.graph.as_default(), deprecation.silence():
        try:
            return tf.compat.v1.saved_model.load(session, list(tags), path)
        except tf.errors.OpError as error:
            raise serving_error(error.error_code, error.message) from error
        except RuntimeError as error:
            if "MetaGraphDef associated with tags" not in str(error):
                raise UnknownError(f"{path}: {error}") from error
            raise no_such_tags(path, tags) from error
        except (OSError, DecodeError) as error:
            raise DataLoss(f"{path}: saved_model.pb cannot be read: {error}") from error


def _signature_map(meta_graph: Any) -> Any:
    """Carry the SignatureDefs of a MetaGraphDef over into our own pool, by bytes."""
    signature_map = messages.SignatureDefMap()
    for name, definition in meta_graph.signature_def.items():
        signature_map.signature_def[name].ParseFromString(definition.SerializeToString())
    return signature_map


def _convolves(graph_def: Any) -> bool:
    """Tell whether a graph has convolutions: TensorFlow's (oneDNN) abort the process when the rank is not theirs."""
    functions = graph_def.library.function
    bodies = [graph_def.node, *(function.node_def for function in functions)]
    return any("Conv" in node.op for body in bodies for node in body)


def _ranked(array: np.ndarray, rank: int | None, spec: TensorSpec) -> np.ndarray:
    if rank is not None and array.ndim != rank:
        shown = ",".join(map(str, array.shape))
        raise InvalidArgument(f"input {spec.name!r} has shape [{shown}]; expected {spec}")
    return array


def _as_array(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, bytes):
        # A string scalar comes back bare; np.asarray would cut trailing zero bytes off it.
        scalar = np.empty((), dtype=object)
        scalar[()] = value
        return scalar
    return np.asarray(value)
