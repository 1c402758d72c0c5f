"""Is the artifact the model? Loads what was written back and compares every signature with the graph it came from.

Reference: model_fn in mode EXPORT, restored from the checkpoint and run directly on real rows; and, where model_fn
gives an ExportSpec in that mode too, model_fn in mode EVAL, the graph whose metrics the user trusts. The second catches
a model_fn that behaves differently per mode: a batch norm left in training mode, a dropout that stays on.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensorflow.python.util import deprecation

from moxserve.errors import ModelSpecError, MoxserveError
from moxserve.export.compare import Checker
from moxserve.export.graphs import Endpoints, ModelSession, as_arrays, open_model, open_session
from moxserve.export.job import ExportJob
from moxserve.export.manifest import Verification
from moxserve.export.signatures import Planned, class_names, main_key, plan_signatures
from moxserve.export.sources.base import Gathered
from moxserve.export.sources.samples import chunk_rows
from moxserve.protocol.examples import make_example
from moxserve.protocol.metadata import signature_from_def
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.types import INIT_SIGNATURES, Signature

__all__ = [
    "Artifact",
    "Verified",
    "full_precision",
    "open_artifact",
    "serialize_examples",
    "verify",
]

_precision_lock = threading.Lock()
_EVAL_HINT = (
    "model_fn computes something else in mode EXPORT than in mode EVAL; look for what depends on the mode "
    "(dropout, is_training). If that is meant, export with check_eval=False (--no-check-eval)"
)
_NO_EVAL = "not compared with the EVAL graph"


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


def serialize_examples(inputs: Mapping[str, np.ndarray], example_spec: Mapping[str, Any] | None = None) -> np.ndarray:
    """Turn rows into what a signature on tf.Examples takes.

    Args:
        inputs: by alias, equal first dimension.
        example_spec: how the features of some of them are stored; None for all as their type says.

    Returns:
        [rows] serialized tf.Examples, an object array of bytes.
    """
    stored = {alias: _stored((example_spec or {}).get(alias), values) for alias, values in inputs.items()}
    rows = len(next(iter(stored.values())))
    examples = np.empty(rows, dtype=object)
    for i in range(rows):
        examples[i] = make_example({alias: values[i] for alias, values in stored.items()}).SerializeToString()
    return examples


def _stored(feature: Any, values: np.ndarray) -> np.ndarray:
    """Bring values into the type of their feature list."""
    if feature is None or values.dtype == object:
        return values
    return values.astype(tf.dtypes.as_dtype(feature.dtype).as_numpy_dtype)


def _as_parsed(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Round float64 as the float lists of a tf.Example do."""
    return {a: v.astype(np.float32).astype(v.dtype) if v.dtype == np.float64 else v for a, v in inputs.items()}


@dataclass(frozen=True)
class Verified:
    """What a comparison came to.

    Attributes:
        verification: the figures.
        notes: what the caller should know.
        gathered: key -> the rows that were compared, as the signature takes them, and the reference's answers.
    """

    verification: Verification
    notes: tuple[str, ...]
    gathered: Mapping[str, Gathered]


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
    size, usable, why = chunk_rows(job.inputs, rows)
    if why:
        return _Rows((), 0, why)
    starts = range(0, usable, size)
    stops = (min(start + starts.step, usable) for start in starts)
    chunks = [(start, [a[start:stop] for a in job.samples]) for start, stop in zip(starts, stops, strict=True)]
    return _Rows(chunks, usable)


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
    comparison = _Comparison(reference, artifact, Checker(job.atol, job.rtol))
    checker = comparison.checker
    with full_precision():
        if not rows.count:
            mode = _try_zeros(job, comparison)
            checker.raise_if_different(lambda _: _hint_export(False))
            return Verified(_figures(job, checker, mode, 0, ["EXPORT graph"]), (rows.note,), {})
        for first, chunk in rows.chunks:
            comparison.add(first, chunk)
        checker.raise_if_different(lambda _: _hint_export(_is_random(reference, rows.chunks[0][1])))
        main = main_key(reference.endpoints)
        notes = _check_eval(job, rows, artifact, checker, main) if job.check_eval else [_NO_EVAL]
    references = sorted({key[2] for key in checker.results}, reverse=True)
    notes += [g.note for g in (comparison.gathered[main],) if g.note]
    verification = _figures(job, checker, "samples", rows.count, references)
    return Verified(verification, tuple(notes), comparison.gathered)


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


class _Comparison:
    """Runs chunks through the reference and the artifact, and collects what both took and gave.

    Args:
        reference: the EXPORT graph, restored.
        artifact: what was written, loaded back.
        checker: collects differences.
    """

    def __init__(self, reference: ModelSession, artifact: Artifact, checker: Checker) -> None:
        self.checker = checker
        self._reference = reference
        self._artifact = artifact
        self._plan = plan_signatures(reference.endpoints)
        self.gathered = {key: Gathered() for key in self._plan}

    def add(self, first: int, chunk: Sequence[np.ndarray]) -> None:
        """Compare every signature on a chunk of rows of model_fn's inputs."""
        groups = {f"{side}/{key}": getattr(p, side) for key, p in self._plan.items() for side in ("inputs", "outputs")}
        found = self._reference.fetch(groups, chunk)
        for key, planned in self._plan.items():
            given, expected = self._request(planned, found[f"inputs/{key}"], found[f"outputs/{key}"])
            got = self._artifact.run(key, given)
            self.checker.compare((key, f"{self._reference.mode} graph"), got, expected, first)
            self.gathered[key].add(given, expected)

    def _request(
        self, planned: Planned, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]
    ) -> tuple[Mapping[str, np.ndarray], dict[str, np.ndarray]]:
        """Return what the signature takes for these rows, and what it should give."""
        endpoints = self._reference.endpoints
        given: Mapping[str, np.ndarray] = inputs
        if planned.examples:
            parsed = _as_parsed(inputs)
            if any(v.dtype == np.float64 for v in inputs.values()):
                outputs = self._reference.feed(planned.outputs, planned.inputs, parsed)
            given = {planned.examples: serialize_examples(parsed, endpoints.example_spec)}
        if planned.method != "predict":
            outputs = {a: v.astype(np.float32) if v.dtype != object else v for a, v in outputs.items()}
        if planned.method == "classify" and "classes" not in outputs:
            outputs["classes"] = _names(endpoints, planned, outputs["scores"])
        return given, outputs


def _names(endpoints: Endpoints, planned: Planned, scores: np.ndarray) -> np.ndarray:
    """Return the class names that belong to scores whose shape may only be known now.

    Raises:
        ModelSpecError: the scores are no matrix, or there is another number of labels.
    """
    where = f"ExportSpec.signatures[{planned.key!r}]" if planned.key in endpoints.signatures else "ExportSpec.scores"
    if scores.ndim != 2:
        raise ModelSpecError(f"{where}: the scores are {list(scores.shape)}; expected [batch, classes]")
    names = class_names(endpoints, scores.shape[1])
    if len(names) != scores.shape[1] and planned.key in endpoints.signatures:
        names = tuple(str(i) for i in range(scores.shape[1]))
    if len(names) != scores.shape[1]:
        raise ModelSpecError(f"{len(names)} labels for {scores.shape[1]} classes in {where}")
    return np.broadcast_to(np.array([name.encode() for name in names], dtype=object), scores.shape)


def _try_zeros(job: ExportJob, comparison: _Comparison) -> str:
    shapes = [[1 if d is None else d for d in spec.shape or ()] for spec in job.inputs]
    zeros = [
        np.full(shape, b"", dtype=object) if spec.dtype.name == "string" else np.zeros(shape, spec.dtype.numpy)
        for shape, spec in zip(shapes, job.inputs, strict=True)
    ]
    try:
        comparison.add(0, zeros)
    except tf.errors.InvalidArgumentError:
        # The model's own refusal of made-up values says nothing about the artifact.
        return "loaded"
    return "zeros"


def _check_eval(job: ExportJob, rows: _Rows, artifact: Artifact, checker: Checker, main: str) -> list[str]:
    """Compare with the EVAL graph where model_fn gives the same outputs there; say so where it does not."""
    with contextlib.ExitStack() as stack:
        try:
            model = stack.enter_context(open_model(job, "EVAL"))
        except Exception as error:  # noqa: BLE001 - the user's code, in a mode that it need not support; told, not lost
            told = error.message if isinstance(error, MoxserveError) else f"{type(error).__name__}: {error}"
            return [f"not compared with the EVAL graph: {told}"]
        shared = [a for a in model.endpoints.outputs if a in artifact.signatures[main].outputs]
        if not shared or model.endpoints.inputs.keys() != artifact.signatures[main].inputs.keys():
            return ["not compared with the EVAL graph: its ExportSpec names other tensors"]
        for first, chunk in rows.chunks:
            inputs, outputs = model.run(chunk)
            expected = {alias: outputs[alias] for alias in shared}
            checker.compare((main, "EVAL graph"), artifact.run(main, inputs), expected, first)
    checker.raise_if_different(lambda _: _EVAL_HINT)
    return []


def _is_random(reference: ModelSession, rows: Sequence[np.ndarray]) -> bool:
    first, second = reference.run(rows)[1], reference.run(rows)[1]
    return any(not np.array_equal(first[a], second[a]) for a in first)


def _hint_export(is_random: bool) -> str:
    if is_random:
        return "the model gives other answers each time it is run on the same rows; is dropout on in mode EXPORT?"
    return "model_fn must build the same computation each time it is called; or give a larger atol or rtol"
