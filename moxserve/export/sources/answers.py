"""What the source answers, collected before the SavedModel is looked at, and the comparison of the two.

The source is run first and closed, so that only one of the two models is in memory at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from moxserve.errors import DataError, first_line
from moxserve.export.compare import Checker
from moxserve.export.job import JobOptions
from moxserve.export.manifest import Source, Verification
from moxserve.export.place import place
from moxserve.export.sources.base import Gathered, StagedModel, find_scores
from moxserve.export.sources.samples import Samples, chunk_rows, made_up_inputs
from moxserve.export.verify import full_precision, open_artifact
from moxserve.tensorflow.executor.env import tf
from moxserve.types import Signature

__all__ = ["Answers", "Case", "Origin", "Runnable", "collect", "compare", "no_samples", "stage_answers"]

Others = Mapping[str, Iterable[tuple[Mapping[str, np.ndarray], bool]]]
Mode = Literal["samples", "zeros", "loaded"]


class Runnable(Protocol):
    """A loaded model that answers by signature."""

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """By key."""
        ...

    def run(self, name: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a signature on arrays by alias and return its outputs by alias."""
        ...


@dataclass(frozen=True)
class Case:
    """One request and what the source answered.

    Attributes:
        signature: key.
        first: index of its first row among all rows.
        inputs: by alias.
        outputs: by alias.
    """

    signature: str
    first: int
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Origin:
    """What is told of a source besides its answers.

    Attributes:
        main: key in the artifact of the signature that variants are made of.
        keys: key in the artifact -> key in the source.
        reference: what the source is called in messages and in the manifest.
        source: for the manifest.
        notes: what the user should know.
        metadata: of the source's own manifest.
    """

    main: str
    keys: Mapping[str, str]
    reference: str
    source: Source
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Answers:
    """What the source answered.

    Attributes:
        cases: in the order in which they were run.
        mode: how real the rows of the main signature are.
        rows: how many real rows of it.
        restless: keys of signatures that answered the same request differently: random ones, or with state.
        labels: `[rows]`, the right classes; None when they are not known.
        notes: what the user should know.
        gathered: the rows and answers of the main signature.
        real: keys of further signatures that were run on real rows.
    """

    cases: list[Case] = field(default_factory=list)
    mode: Mode = "loaded"
    rows: int = 0
    restless: set[str] = field(default_factory=set)
    labels: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)
    gathered: Gathered = field(default_factory=Gathered)
    real: set[str] = field(default_factory=set)


def collect(
    model: Runnable,
    signatures: Mapping[str, Signature],
    main: str,
    samples: Samples,
    others: Others | None = None,
) -> Answers:
    """Run the source on real rows, or made-up ones where there are none.

    Args:
        model: the source.
        signatures: those to run, by key.
        main: key of the signature that the samples are for.
        samples: rows of it; may be empty.
        others: key -> requests of a further signature to try in order, and whether they are of real rows.

    Raises:
        DataError: the source refuses the samples.
    """
    answers = Answers()
    with full_precision():
        _run_main(model, signatures[main], samples, answers)
        for key, signature in signatures.items():
            if key != main:
                _run_other(model, signature, samples, (others or {}).get(key, ()), answers)
        _find_restless(model, answers)
    if answers.gathered.note:
        answers.notes.append(answers.gathered.note)
    return answers


def _run_main(model: Runnable, signature: Signature, samples: Samples, answers: Answers) -> None:
    main = signature.name
    size, usable, why = chunk_rows(signature.inputs.values(), len(samples))
    if why:
        answers.notes.append(why)
    if not usable:
        answers.mode = "zeros" if _run_zeros(model, signature, answers) else "loaded"
        if not len(samples):
            answers.notes.append(no_samples(answers.mode))
        return
    for first in range(0, usable, size):
        chunk = {alias: values[first : min(first + size, usable)] for alias, values in samples.inputs.items()}
        try:
            outputs = model.run(main, chunk)
        except (tf.errors.OpError, ValueError) as error:
            raise DataError(f"signature {main!r} refuses the samples: {first_line(error)}") from error
        answers.cases.append(Case(main, first, chunk, outputs))
        answers.gathered.add(chunk, outputs)
    answers.mode, answers.rows = "samples", usable
    answers.labels = None if samples.labels is None else samples.labels[:usable]


def no_samples(mode: Mode) -> str:
    """Return what to tell when there were no real rows."""
    what = "made-up zeros were compared" if mode == "zeros" else "the model was loaded, not compared"
    return f"no samples: {what}, and no warmup records were written"


def _run_other(
    model: Runnable,
    signature: Signature,
    samples: Samples,
    others: Iterable[tuple[Mapping[str, np.ndarray], bool]],
    answers: Answers,
) -> None:
    """Run a further signature on the samples if it takes the same inputs, on other requests, else on zeros."""
    same = _same_inputs(signature, samples)
    for inputs, real in (*([(same, True)] if same is not None else []), *others):
        if _try(model, signature.name, inputs, answers):
            answers.real |= {signature.name} if real else set()
            return
    if not _run_zeros(model, signature, answers):
        answers.notes.append(f"signature {signature.name!r} takes no made-up values: it was loaded, not compared")


def _same_inputs(signature: Signature, samples: Samples) -> Mapping[str, np.ndarray] | None:
    if not len(samples) or signature.inputs.keys() != samples.inputs.keys():
        return None
    size, usable, _ = chunk_rows(signature.inputs.values(), len(samples))
    return {alias: values[: min(size, usable)] for alias, values in samples.inputs.items()} if usable else None


def _run_zeros(model: Runnable, signature: Signature, answers: Answers) -> bool:
    return any(_try(model, signature.name, inputs, answers) for inputs in made_up_inputs(signature))


def _try(model: Runnable, key: str, inputs: Mapping[str, np.ndarray], answers: Answers) -> bool:
    try:
        outputs = model.run(key, inputs)
    except (tf.errors.OpError, ValueError):
        # The model's own refusal of values that nobody sent on purpose says nothing about the artifact.
        return False
    answers.cases.append(Case(key, 0, inputs, outputs))
    return True


def _find_restless(model: Runnable, answers: Answers) -> None:
    """Ask the first request of each signature again; whoever answers differently cannot be held to it."""
    first: dict[str, Case] = {}
    for case in answers.cases:
        first.setdefault(case.signature, case)
    for key, case in first.items():
        again = model.run(key, case.inputs)
        if any(not _equal(again[alias], value) for alias, value in case.outputs.items()):
            answers.restless.add(key)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    # NaN is equal to itself here; np.array_equal knows that only of numbers.
    return a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")


def compare(
    answers: Answers, artifact: Runnable, tolerance: tuple[float, float], origin: Origin
) -> tuple[Verification, tuple[str, ...]]:
    """Hold the artifact against what the source answered.

    Args:
        answers: of the source.
        artifact: loaded back.
        tolerance: atol and rtol.
        origin: what the source is called, and its keys in the artifact.

    Returns:
        The figures, and what the user should know.

    Raises:
        VerificationError: it differs; names signature, output, worst element and figures.
    """
    notes = list(answers.notes)
    checkers: list[Checker] = []
    with full_precision():
        for new, old in origin.keys.items():
            checker = Checker(*tolerance)
            for case in answers.cases:
                if case.signature == old:
                    got = artifact.run(new, case.inputs)
                    checker.compare((new, origin.reference), got, case.outputs, case.first)
            if old in answers.restless and any(c.differing for c in checker.results.values()):
                notes.append(f"signature {new!r} answers differently each time (chance, or state): run, not compared")
                continue
            checker.raise_if_different(lambda _: "give a larger atol or rtol if that is near enough")
            checkers.append(checker)
    return _figures(answers, checkers, tolerance, origin.reference), tuple(notes)


def _figures(
    answers: Answers, checkers: Sequence[Checker], tolerance: tuple[float, float], reference: str
) -> Verification:
    checks = tuple(check for checker in checkers for check in checker.checks())
    return Verification(
        mode=answers.mode,
        rows=answers.rows,
        references=(reference,),
        atol=tolerance[0],
        rtol=tolerance[1],
        max_abs_error=max((c.max_abs_error for c in checks), default=0.0),
        outputs=checks,
    )


def stage_answers(job: JobOptions, answers: Answers, directory: str, origin: Origin) -> StagedModel:
    """Load what was written back, hold it against the source's answers, and tell what there is.

    Args:
        job: has the tolerances.
        answers: of the source.
        directory: the SavedModel that was written.
        origin: where it came from.

    Raises:
        VerificationError: it answers differently.
    """
    with contextlib.ExitStack() as stack:
        with place("loading the SavedModel back"):
            artifact = stack.enter_context(open_artifact(directory))
        with place("verifying the SavedModel"):
            verification, notes = compare(answers, artifact, (job.atol, job.rtol), origin)
        signatures = dict(sorted(artifact.signatures.items()))
    main = signatures[origin.main]
    labels = answers.labels if answers.gathered.inputs else None
    scores = find_scores(main, labelled=labels is not None)
    if labels is not None and not scores:
        notes = (*notes, f"the labels of the rows are of no use: no output of {main.name!r} is known to hold scores")
    return StagedModel(
        signatures=signatures,
        main=main.name,
        rows=answers.gathered.rows(),
        expected=answers.gathered.expected(main),
        labels=labels,
        scores=scores,
        verification=verification,
        source=origin.source,
        notes=(*origin.notes, *notes),
        metadata=origin.metadata,
        requests=_requests(answers, origin),
    )


def _requests(answers: Answers, origin: Origin) -> dict[str, Mapping[str, np.ndarray]]:
    """Return real requests by key: the rows of the main signature, and what else was recorded or takes the same."""
    if not answers.gathered.inputs:
        return {}
    rows = answers.gathered.rows()
    main = origin.keys[origin.main]
    others = {case.signature: case.inputs for case in answers.cases if case.signature in answers.real}
    found = {new: rows if old == main else others.get(old) for new, old in origin.keys.items()}
    return {key: inputs for key, inputs in found.items() if inputs is not None}
