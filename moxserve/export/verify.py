"""Is the artifact the model? Loads what was written back and compares every signature with the graph it came from.

Reference: model_fn in mode EXPORT, restored from the checkpoint and run directly on real rows; and, where model_fn
gives an ExportSpec in that mode too, model_fn in mode EVAL, the graph whose metrics the user trusts. The second catches
a model_fn that behaves differently per mode: a batch norm left in training mode, a dropout that stays on.

Floating-point outputs pass when `|got - expected| <= atol + rtol * |expected|` for each element, NaN meeting NaN;
everything else must be equal.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moxserve.errors import ModelSpecError, MoxserveError, VerificationError
from moxserve.export.graphs import ModelSession, open_model, open_session
from moxserve.export.job import ExportJob
from moxserve.export.manifest import OutputCheck, Verification
from moxserve.export.signatures import CLASSIFY, CLASSIFY_INPUT, PREDICT, class_names
from moxserve.protocol.examples import make_example
from moxserve.protocol.metadata import signature_from_def
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.types import Signature

__all__ = ["Artifact", "Checker", "Comparison", "fixed_batches", "open_artifact", "serialize_examples", "verify"]

_CHUNK_ROWS = 64
_precision_lock = threading.Lock()
_INIT_SIGNATURES = {"__saved_model_init_op", "__saved_model_train_op"}


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
        return {k: np.array(v, dtype=object) if isinstance(v, bytes) else np.asarray(v) for k, v in fetched.items()}


@contextlib.contextmanager
def open_artifact(directory: str) -> Iterator[Artifact]:
    """Load a SavedModel into a fresh graph and session, as a server does."""
    with open_session() as session:
        meta = tf1.saved_model.load(session, [tf1.saved_model.tag_constants.SERVING], directory)
        found = {name: signature_from_def(name, proto) for name, proto in meta.signature_def.items()}
        callable_ones = {n: s for n, s in found.items() if s is not None and n not in _INIT_SIGNATURES}
        yield Artifact(session, callable_ones)


@dataclass
class Comparison:
    """How one output of one signature compares with the reference, over all rows seen so far.

    Attributes:
        max_abs: largest absolute difference.
        max_rel: largest difference relative to a reference that is itself larger than atol.
        differing: elements outside the tolerance.
        total: elements seen.
        worst: index and the two values of the element furthest outside; empty when all are inside.
    """

    max_abs: float = 0.0
    max_rel: float = 0.0
    differing: int = 0
    total: int = 0
    worst: str = ""
    _excess: float = field(default=0.0, repr=False)

    def add(self, got: np.ndarray, expected: np.ndarray, tolerance: tuple[float, float], first_row: int) -> None:
        """Compare one chunk.

        Args:
            got: what the artifact answered.
            expected: what the reference answered, of the same shape.
            tolerance: atol and rtol.
            first_row: index of the chunk's first row among all rows, for the message.
        """
        self.total += expected.size
        if not expected.size:
            return
        if expected.dtype.kind in "fcV":
            difference, excess = self._float_excess(got, expected, tolerance)
        else:
            unequal = np.asarray(got != expected)
            difference = excess = _distance(got, expected, unequal)
        self.differing += int(np.count_nonzero(excess > 0))
        self.max_abs = max(self.max_abs, float(difference.max()))
        top = float(excess.max())
        if top > self._excess:
            self._excess = top
            index = np.unravel_index(int(np.argmax(excess)), expected.shape)
            where = [int(i) for i in index]
            if where:
                where[0] += first_row
            self.worst = f"at {where} it is {_show(got[index])} and should be {_show(expected[index])}"

    def _float_excess(
        self, got: np.ndarray, expected: np.ndarray, tolerance: tuple[float, float]
    ) -> tuple[np.ndarray, np.ndarray]:
        atol, rtol = tolerance
        wide = np.complex128 if expected.dtype.kind == "c" else np.float64
        a, b = got.astype(wide), expected.astype(wide)
        with np.errstate(invalid="ignore", over="ignore"):
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            difference = np.where(same, 0.0, np.abs(a - b))
            # A NaN or an infinity on one side only is as wrong as can be.
            difference = np.where(np.isnan(difference), np.inf, difference)
            size = np.where(np.isfinite(b), np.abs(b), 0.0)
        large = size > max(atol, np.finfo(np.float32).tiny)
        if large.any():
            self.max_rel = max(self.max_rel, float((difference[large] / size[large]).max()))
        return difference, np.maximum(difference - (atol + rtol * size), 0.0)


def _distance(got: np.ndarray, expected: np.ndarray, unequal: np.ndarray) -> np.ndarray:
    """Return how far apart integers are; 1 for strings and booleans that differ."""
    if expected.dtype.kind not in "iu":
        return unequal.astype(np.float64)
    return np.where(unequal, np.maximum(np.abs(got.astype(np.float64) - expected.astype(np.float64)), 1.0), 0.0)


def _show(value: Any) -> str:
    if isinstance(value, (bytes, str)):
        return f"{value!r:.80}"
    return f"{value:.9g}" if isinstance(value, np.floating) else str(value)


class Checker:
    """Collects comparisons, and fails at the end with the worst one.

    Args:
        atol: absolute tolerance.
        rtol: relative tolerance.
    """

    def __init__(self, atol: float, rtol: float) -> None:
        self.tolerance = (atol, rtol)
        self.results: dict[tuple[str, str, str], Comparison] = {}

    def compare(
        self,
        place: tuple[str, str],
        got: Mapping[str, np.ndarray],
        expected: Mapping[str, np.ndarray],
        first_row: int,
    ) -> None:
        """Compare the outputs of one signature with what a reference gave for the same rows.

        Args:
            place: signature and reference, for the message.
            got: by alias.
            expected: by alias; each must be among `got`.
            first_row: index of the first row.

        Raises:
            VerificationError: an output is missing or has another shape or element type.
        """
        signature, reference = place
        for alias, want in expected.items():
            where = f"signature {signature!r}, output {alias!r}"
            if alias not in got:
                raise VerificationError(f"{where}: the artifact does not give it; the {reference} does")
            have = got[alias]
            if have.shape != want.shape or have.dtype != want.dtype:
                raise VerificationError(
                    f"{where}: the artifact gives {have.dtype}{list(have.shape)}, "
                    f"the {reference} {want.dtype}{list(want.shape)}"
                )
            result = self.results.setdefault((signature, alias, reference), Comparison())
            result.add(have, want, self.tolerance, first_row)

    def raise_if_different(self, hint: Callable[[str], str]) -> None:
        """Fail when an output is outside the tolerance.

        Args:
            hint: gives advice for the reference that disagrees.

        Raises:
            VerificationError: names signature, output, figures and the worst element.
        """
        bad = {key: c for key, c in self.results.items() if c.differing}
        if not bad:
            return
        (signature, output, reference), worst = max(bad.items(), key=lambda item: item[1]._excess)
        atol, rtol = self.tolerance
        raise VerificationError(
            f"signature {signature!r}, output {output!r} differs from the {reference}: {worst.worst} "
            f"({worst.differing} of {worst.total} values differ; max abs error {worst.max_abs:.3g}, "
            f"max rel error {worst.max_rel:.3g}, tolerance atol {atol:g} + rtol {rtol:g})",
            hint=hint(reference),
        )

    def checks(self) -> tuple[OutputCheck, ...]:
        """Return the figures per signature and output, the worst reference counting."""
        merged: dict[tuple[str, str], tuple[float, float]] = {}
        for (signature, output, _), c in self.results.items():
            before = merged.get((signature, output), (0.0, 0.0))
            merged[signature, output] = (max(before[0], c.max_abs), max(before[1], c.max_rel))
        return tuple(
            OutputCheck(signature=s, output=o, max_abs_error=a, max_rel_error=r) for (s, o), (a, r) in merged.items()
        )


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
    fixed = fixed_batches(job)
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


def fixed_batches(job: ExportJob) -> set[int]:
    """Return the batch sizes that the inputs insist on: none for a free batch, 0 standing for an input without one."""
    shapes = [spec.shape for spec in job.inputs if spec.shape is not None]
    return {(shape[0] if shape else 0) for shape in shapes if not shape or shape[0] is not None}  # type: ignore[misc]


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Switch TensorFloat-32 off: on a GPU it would make two runs of one graph differ in the third digit."""
    # The switch is the process's: two exports at once take turns.
    with _precision_lock:
        before = tf.config.experimental.tensor_float_32_execution_enabled()
        tf.config.experimental.enable_tensor_float_32_execution(False)
        try:
            yield
        finally:
            tf.config.experimental.enable_tensor_float_32_execution(before)


def verify(job: ExportJob, reference: ModelSession, artifact: Artifact) -> tuple[Verification, list[str]]:
    """Compare an artifact with its references on all samples.

    Args:
        job: gives samples and tolerances.
        reference: the EXPORT graph, restored.
        artifact: what was written, loaded back.

    Returns:
        The figures, and what the caller should know.

    Raises:
        VerificationError: an output differs; names signature, output, worst element and figures.
    """
    rows = _chunks(job)
    checker = Checker(job.atol, job.rtol)
    with _full_precision():
        if not rows.count:
            mode = _try_zeros(job, reference, artifact, checker)
            checker.raise_if_different(lambda _: _hint_export(False))
            return _figures(job, checker, mode, 0, ["EXPORT graph"]), [rows.note]
        for first, chunk in rows.chunks:
            inputs, outputs = reference.run(chunk)
            _check_chunk(reference, artifact, checker, first, inputs, outputs)
        checker.raise_if_different(lambda _: _hint_export(_is_random(reference, rows.chunks[0][1])))
        notes = _check_eval(job, rows, artifact, checker) if job.check_eval else ["not compared with the EVAL graph"]
    references = sorted({key[2] for key in checker.results}, reverse=True)
    return _figures(job, checker, "samples", rows.count, references), notes


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
    try:
        with open_model(job, "EVAL") as model:
            shared = [a for a in model.endpoints.outputs if a in artifact.signatures[PREDICT].outputs]
            if not shared or model.endpoints.inputs.keys() != artifact.signatures[PREDICT].inputs.keys():
                return ["not compared with the EVAL graph: its ExportSpec names other tensors"]
            for first, chunk in rows.chunks:
                inputs, outputs = model.run(chunk)
                expected = {alias: outputs[alias] for alias in shared}
                checker.compare((PREDICT, "EVAL graph"), artifact.run(PREDICT, inputs), expected, first)
    except VerificationError:
        raise
    except MoxserveError as error:
        return [f"not compared with the EVAL graph: {error.message}"]
    checker.raise_if_different(
        lambda _: (
            "model_fn computes something else in mode EXPORT than in mode EVAL; look for what depends on the mode "
            "(dropout, is_training). If that is meant, export with check_eval=False (--no-check-eval)"
        )
    )
    return []


def _is_random(reference: ModelSession, rows: Sequence[np.ndarray]) -> bool:
    first, second = reference.run(rows)[1], reference.run(rows)[1]
    return any(not np.array_equal(first[a], second[a]) for a in first)


def _hint_export(is_random: bool) -> str:
    if is_random:
        return "the model gives other answers each time it is run on the same rows; is dropout on in mode EXPORT?"
    return "model_fn must build the same computation each time it is called; or give a larger atol or rtol"
