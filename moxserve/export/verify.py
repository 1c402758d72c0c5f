"""Is the artifact the model? Loads what was written back and compares every signature with the graph it came from.

Reference: model_fn in mode EXPORT, restored from the checkpoint and run directly on real rows; and, where model_fn
gives an ExportSpec in that mode too, model_fn in mode EVAL, the graph whose metrics the user trusts. The second catches
a model_fn that behaves differently per mode: a batch norm left in training mode, a dropout that stays on.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensorflow.python.util import deprecation

from moxserve.errors import ModelSpecError, MoxserveError
from moxserve.export.compare import Checker
from moxserve.export.graphs import ModelSession, as_arrays, open_model, open_session
from moxserve.export.job import ExportJob
from moxserve.export.manifest import Verification
from moxserve.export.signatures import CLASSIFY, CLASSIFY_INPUT, PREDICT, class_names
from moxserve.export.sources.base import Gathered
from moxserve.protocol.examples import make_example
from moxserve.protocol.metadata import signature_from_def
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.types import Signature, TensorSpec

__all__ = [
    "INIT_SIGNATURES",
    "Artifact",
    "Verified",
    "fixed_batches",
    "full_precision",
    "open_artifact",
    "serialize_examples",
    "verify",
]

_CHUNK_ROWS = 64
_precision_lock = threading.Lock()
_EVAL_HINT = (
    "model_fn computes something else in mode EXPORT than in mode EVAL; look for what depends on the mode "
    "(dropout, is_training). If that is meant, export with check_eval=False (--no-check-eval)"
)
INIT_SIGNATURES = {"__saved_model_init_op", "__saved_model_train_op"}


@dataclass(frozen=True)
class Artifact:
    """A SavedModel that is loaded and can be run.

    Attributes:
        session: open.
        signatures: by key.
    """

    session: Any
    signatures: Mapping[str, Signature]

    def run(self, name: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a signature on arrays by alias and return its outputs by alias."""
        signature = self.signatures[name]
        feed = {signature.inputs[alias].tensor: value for alias, value in inputs.items()}
        fetched = self.session.run({alias: spec.tensor for alias, spec in signature.outputs.items()}, feed)
        return as_arrays(fetched)


@contextlib.contextmanager
def open_artifact(directory: str, tags: Sequence[str] = (tf1.saved_model.tag_constants.SERVING,)) -> Iterator[Artifact]:
    """Load a SavedModel into a fresh graph and session, as a server does."""
    with open_session() as session, deprecation.silence():
        meta = tf1.saved_model.load(session, list(tags), directory)
        found = {name: signature_from_def(name, proto) for name, proto in meta.signature_def.items()}
        callable_ones = {n: s for n, s in found.items() if s is not None and n not in INIT_SIGNATURES}
        yield Artifact(session, callable_ones)


def serialize_examples(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Turn rows into the input of a classify signature.

    Args:
        inputs: by alias, equal first dimension.

    Returns:
        [rows] serialized tf.Examples, an object array of bytes.
    """
    rows = len(next(iter(inputs.values())))
    examples = np.empty(rows, dtype=object)
    for i in range(rows):
        examples[i] = make_example({alias: values[i] for alias, values in inputs.items()}).SerializeToString()
    return examples


def _as_parsed(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Round float64 as the float lists of a tf.Example do."""
    return {a: v.astype(np.float32).astype(v.dtype) if v.dtype == np.float64 else v for a, v in inputs.items()}


@dataclass(frozen=True)
class Verified:
    """What a comparison came to.

    Attributes:
        verification: the figures.
        notes: what the caller should know.
        gathered: the rows that were compared, as the main signature takes them, and the reference's answers.
    """

    verification: Verification
    notes: tuple[str, ...]
    gathered: Gathered


@dataclass(frozen=True)
class _Rows:
    """The rows to verify with, in chunks that the graph takes."""

    chunks: Sequence[tuple[int, Sequence[np.ndarray]]]
    count: int
    note: str = ""


def _chunks(job: ExportJob) -> _Rows:
    """Cut the samples into chunks: of the fixed batch where the graph has one."""
    rows = job.sample_rows
    if not rows:
        return _Rows((), 0, "no samples: one row of zeros was compared, and no warmup records were written")
    fixed = fixed_batches(job.inputs)
    if len(fixed) > 1 or 0 in fixed:
        return _Rows((), 0, "the inputs have no common batch dimension: samples were not compared")
    size = fixed.pop() if fixed else None
    usable = rows if size is None else rows - rows % size
    if not usable:
        return _Rows((), 0, f"{rows} samples do not fill the fixed batch of {size}: they were not compared")
    starts = range(0, usable, size or _CHUNK_ROWS)
    stops = (min(start + starts.step, usable) for start in starts)
    chunks = [(start, [a[start:stop] for a in job.samples]) for start, stop in zip(starts, stops, strict=True)]
    return _Rows(chunks, usable)


def fixed_batches(inputs: Iterable[TensorSpec]) -> set[int]:
    """Return the batch sizes that inputs insist on: none for a free batch, 0 standing for an input without one."""
    shapes = [spec.shape for spec in inputs if spec.shape is not None]
    return {(shape[0] if shape else 0) for shape in shapes if not shape or shape[0] is not None}  # type: ignore[misc]


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Switch TensorFloat-32 off: on a GPU it would make two runs of one graph differ in the third digit."""
    # The switch is the process's: two exports at once take turns.
    with _precision_lock:
        before = tf.config.experimental.tensor_float_32_execution_enabled()
        tf.config.experimental.enable_tensor_float_32_execution(False)
        try:
            yield
        finally:
            tf.config.experimental.enable_tensor_float_32_execution(before)


def verify(job: ExportJob, reference: ModelSession, artifact: Artifact) -> Verified:
    """Compare an artifact with its references on all samples.

    Args:
        job: gives samples and tolerances.
        reference: the EXPORT graph, restored.
        artifact: what was written, loaded back.

    Returns:
        The figures, what the caller should know, and the rows.

    Raises:
        VerificationError: an output differs; names signature, output, worst element and figures.
    """
    rows = _chunks(job)
    gathered = Gathered()
    checker = Checker(job.atol, job.rtol)
    with full_precision():
        if not rows.count:
            mode = _try_zeros(job, reference, artifact, checker)
            checker.raise_if_different(lambda _: _hint_export(False))
            return Verified(_figures(job, checker, mode, 0, ["EXPORT graph"]), (rows.note,), gathered)
        for first, chunk in rows.chunks:
            inputs, outputs = reference.run(chunk)
            gathered.add(inputs, outputs)
            _check_chunk(reference, artifact, checker, first, inputs, outputs)
        checker.raise_if_different(lambda _: _hint_export(_is_random(reference, rows.chunks[0][1])))
        notes = _check_eval(job, rows, artifact, checker) if job.check_eval else ["not compared with the EVAL graph"]
    references = sorted({key[2] for key in checker.results}, reverse=True)
    notes += [gathered.note] if gathered.note else []
    return Verified(_figures(job, checker, "samples", rows.count, references), tuple(notes), gathered)


def _figures(job: ExportJob, checker: Checker, mode: Any, rows: int, references: Sequence[str]) -> Verification:
    checks = checker.checks()
    return Verification(
        mode=mode,
        rows=rows,
        references=tuple(references),
        atol=job.atol,
        rtol=job.rtol,
        max_abs_error=max((c.max_abs_error for c in checks), default=0.0),
        outputs=checks,
    )


def _check_chunk(
    reference: ModelSession,
    artifact: Artifact,
    checker: Checker,
    first: int,
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
) -> None:
    name = f"{reference.mode} graph"
    checker.compare((PREDICT, name), artifact.run(PREDICT, inputs), outputs, first)
    if CLASSIFY not in artifact.signatures:
        return
    parsed = _as_parsed(inputs)
    if any(v.dtype == np.float64 for v in inputs.values()):
        outputs = reference.run_signature(parsed)
    scores = outputs[str(reference.endpoints.scores)].astype(np.float32)
    labels = _labels(reference, scores)
    expected = {"scores": scores, "classes": np.broadcast_to(labels, scores.shape)}
    got = artifact.run(CLASSIFY, {CLASSIFY_INPUT: serialize_examples(parsed)})
    checker.compare((CLASSIFY, name), got, expected, first)


def _labels(reference: ModelSession, scores: np.ndarray) -> np.ndarray:
    """Return the class names that belong to scores whose shape may only be known now.

    Raises:
        ModelSpecError: the scores are no matrix, or there is another number of labels.
    """
    if scores.ndim != 2:
        raise ModelSpecError(f"ExportSpec.scores are {list(scores.shape)}; expected [batch, classes]")
    names = class_names(reference.endpoints, scores.shape[1])
    if len(names) != scores.shape[1]:
        raise ModelSpecError(f"{len(names)} labels for {scores.shape[1]} classes in ExportSpec.scores")
    return np.array([name.encode() for name in names], dtype=object)


def _try_zeros(job: ExportJob, reference: ModelSession, artifact: Artifact, checker: Checker) -> str:
    shapes = [[1 if d is None else d for d in spec.shape or ()] for spec in job.inputs]
    zeros = [
        np.full(shape, b"", dtype=object) if spec.dtype.name == "string" else np.zeros(shape, spec.dtype.numpy)
        for shape, spec in zip(shapes, job.inputs, strict=True)
    ]
    try:
        inputs, outputs = reference.run(zeros)
    except tf.errors.InvalidArgumentError:
        # The model's own refusal of made-up values says nothing about the artifact.
        return "loaded"
    _check_chunk(reference, artifact, checker, 0, inputs, outputs)
    return "zeros"


def _check_eval(job: ExportJob, rows: _Rows, artifact: Artifact, checker: Checker) -> list[str]:
    """Compare with the EVAL graph where model_fn gives the same outputs there; say so where it does not."""
    with contextlib.ExitStack() as stack:
        try:
            model = stack.enter_context(open_model(job, "EVAL"))
        except Exception as error:  # noqa: BLE001 - the user's code, in a mode that it need not support; told, not lost
            told = error.message if isinstance(error, MoxserveError) else f"{type(error).__name__}: {error}"
            return [f"not compared with the EVAL graph: {told}"]
        shared = [a for a in model.endpoints.outputs if a in artifact.signatures[PREDICT].outputs]
        if not shared or model.endpoints.inputs.keys() != artifact.signatures[PREDICT].inputs.keys():
            return ["not compared with the EVAL graph: its ExportSpec names other tensors"]
        for first, chunk in rows.chunks:
            inputs, outputs = model.run(chunk)
            expected = {alias: outputs[alias] for alias in shared}
            checker.compare((PREDICT, "EVAL graph"), artifact.run(PREDICT, inputs), expected, first)
    checker.raise_if_different(lambda _: _EVAL_HINT)
    return []


def _is_random(reference: ModelSession, rows: Sequence[np.ndarray]) -> bool:
    first, second = reference.run(rows)[1], reference.run(rows)[1]
    return any(not np.array_equal(first[a], second[a]) for a in first)


def _hint_export(is_random: bool) -> str:
    if is_random:
        return "the model gives other answers each time it is run on the same rows; is dropout on in mode EXPORT?"
    return "model_fn must build the same computation each time it is called; or give a larger atol or rtol"
