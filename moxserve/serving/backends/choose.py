"""Chooses among the forms of a model in one version directory: the fastest that answers as it should, on this machine.

The SavedModel is what the others are held against; where there is none, or it is not to be used, the most precise form
is. Each variant is loaded, asked the version's warmup records (or made-up inputs), compared within its tolerance, and
timed for a part of a second. The fastest serves; one that raises, differs or lacks its package is left out with a line
in the log. Where the manifest tells of figures from a machine like this one, those that did best there are tried first,
and those that did far worse than one that serves are not tried. The decision is remembered (`decisions`). A version
that holds one form only is not measured at all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from moxserve.errors import InvalidArgument, MissingExtraError, MoxserveError, NotFound, ServingError
from moxserve.export.facts import Timing
from moxserve.export.manifest import TensorNames, Variant, Verification
from moxserve.serving.backends.base import Backend
from moxserve.serving.backends.decisions import Decision, DecisionFile
from moxserve.serving.backends.graph import DoesNotFitError
from moxserve.serving.backends.measure import difference, runs_per_second
from moxserve.serving.backends.samples import Sample, made_up, recorded, without_ones
from moxserve.serving.backends.variants import VariantBackend
from moxserve.types import DEFAULT_SIGNATURE

__all__ = ["Candidate", "Candidates", "choose", "most_precise", "names_for"]

logger = logging.getLogger(__name__)

_BUDGET_S = 1.0
_LEAST_S = 0.15
# A variant that is hardly faster is not worth it: the SavedModel serves all signatures and needs no trust.
_GAIN = 1.1
# One caller (the manifest) and many (here) may differ in what is fastest, but not so much.
_FAR = 4.0
_PRECISIONS = ("float32", "", "bfloat16", "float16", "dynamic", "int8")

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Candidate:
    """A form of the model that may serve.

    Attributes:
        variant: what is known of it.
        load: loads it, to serve only these signatures, or, with None, all that it can.
        told: how fast the manifest says that it is, if that was measured on a machine like this one.
    """

    variant: Variant
    load: Callable[[Sequence[str] | None], Backend]
    told: Timing | None = None


@dataclass(frozen=True)
class Candidates:
    """The forms of one version.

    Attributes:
        version_dir: the version.
        reference: what the others are held against.
        others: the rest.
        facts: whatever else the decision depends on.
    """

    version_dir: str
    reference: Candidate
    others: Sequence[Candidate]
    facts: Mapping[str, object]

    def named(self, name: str) -> Candidate | None:
        """Return the candidate of a name."""
        return next((c for c in (self.reference, *self.others) if c.variant.name == name), None)


@dataclass
class _Reference:
    """The loaded reference: what it answers to each sample, and how fast."""

    backend: Backend | None
    samples: list[Sample] = field(default_factory=list)
    answers: list[Outputs] = field(default_factory=list)
    timed: Sample | None = None


def choose(candidates: Candidates) -> Backend:
    """Load the fastest form of a version that answers as it should.

    Raises:
        MissingExtraError: no form can be loaded for want of a package.
        ServingError: the reference cannot be loaded, and nothing else can stand in for it.
    """
    decisions = DecisionFile(candidates.version_dir, candidates.facts)
    with decisions.locked():
        remembered = _from_memory(candidates, decisions.decision)
        if remembered is not None:
            return remembered
        return _measured(candidates, decisions)


def _from_memory(candidates: Candidates, decision: Decision) -> Backend | None:
    for name in decision.order:
        candidate = candidates.named(name)
        if candidate is None:
            return None
        try:
            backend = candidate.load(decision.signatures.get(name))
        except MoxserveError as error:
            logger.warning("%s: variant %s does not load any more: %s", candidates.version_dir, name, error)
            continue
        logger.info("%s is served by %s, as measured before on this machine", candidates.version_dir, name)
        return backend
    return None


def _measured(candidates: Candidates, decisions: DecisionFile) -> Backend:
    decision = decisions.decision
    decision.order, decision.figures, decision.refused, decision.signatures = [], {}, {}, {}
    budget_s = max(_LEAST_S, _BUDGET_S / (1 + len(candidates.others)))
    reference = _load_reference(candidates)
    best = _Best(reference.backend, candidates.reference, 0.0)
    try:
        if reference.backend is not None and reference.timed is not None:
            figure = runs_per_second(reference.backend, reference.timed, budget_s)
            decision.figures[candidates.reference.variant.name] = figure
            best.figure = figure * _GAIN
        for candidate in sorted(candidates.others, key=_told_cost):
            if best.beyond(candidate):
                continue
            backend = _try(candidate, reference, decisions, budget_s)
            if backend is not None:
                best.offer(backend, candidate, decision.figures[candidate.variant.name])
        if best.backend is None:
            raise _nothing(candidates, decision)
        if best.backend is not reference.backend and reference.backend is not None:
            reference.backend.close()
    except BaseException:
        for backend in {id(b): b for b in (best.backend, reference.backend) if b is not None}.values():
            backend.close()
        raise
    _conclude(candidates, decisions, best.candidate.variant.name)
    return best.backend


@dataclass
class _Best:
    """The best form so far; the first is the reference, which the caller closes."""

    backend: Backend | None
    candidate: Candidate
    figure: float
    first: bool = True

    def beyond(self, other: Candidate) -> bool:
        """Tell whether another one need not be tried: measured on a machine like this one, it is far slower."""
        if self.backend is None or self.candidate.told is None or other.told is None:
            return False
        ours, theirs = self.candidate.told, other.told
        far = theirs.cpu_ms > _FAR * ours.cpu_ms and theirs.min_ms > _FAR * ours.min_ms
        if far:
            logger.info("variant %s is not tried: the manifest says %.3g ms, and %.3g ms of %s",
                        other.variant.name, theirs.min_ms, ours.min_ms, self.candidate.variant.name)  # fmt: skip
        return far

    def offer(self, backend: Backend, candidate: Candidate, figure: float) -> None:
        """Keep the better one of two, and free the other."""
        if self.backend is not None and figure <= self.figure:
            backend.close()
            return
        if self.backend is not None and not self.first:
            self.backend.close()
        self.backend, self.candidate, self.figure, self.first = backend, candidate, figure, False


def _told_cost(candidate: Candidate) -> tuple[bool, float]:
    """Order candidates: the one that takes the least CPU time by the manifest first, those that it does not tell last.

    When all CPUs answer requests, which is what is measured here, CPU time is what counts.
    """
    return candidate.told is None, candidate.told.cpu_ms if candidate.told is not None else 0.0


def _conclude(candidates: Candidates, decisions: DecisionFile, best: str) -> None:
    decision, reference = decisions.decision, candidates.reference.variant.name
    slower = sorted((n for n in decision.figures if n != best), key=lambda n: -decision.figures[n])
    decision.order = list(dict.fromkeys([best, *slower, reference]))
    decisions.save()
    told = ", ".join(f"{name} {decision.figures[name]:.0f}" for name in [best, *slower] if name in decision.figures)
    logger.info("%s is served by %s (requests a second: %s)", candidates.version_dir, best, told or "not measured")


def _nothing(candidates: Candidates, decision: Decision) -> MoxserveError:
    reasons = "; ".join(f"{name}: {why}" for name, why in decision.refused.items())
    return NotFound(f"{candidates.version_dir}: no variant of this model can be served here. {reasons}")


def _load_reference(candidates: Candidates) -> _Reference:
    try:
        backend = candidates.reference.load(None)
    except MissingExtraError as error:
        name = candidates.reference.variant.name
        logger.warning("%s: %s cannot be loaded: %s", candidates.version_dir, name, error.message)
        return _Reference(None, recorded(candidates.version_dir))
    found = _Reference(backend)
    try:
        _answer_samples(found, recorded(candidates.version_dir))
    except BaseException:
        backend.close()
        raise
    return found


def _answer_samples(reference: _Reference, samples: list[Sample]) -> None:
    backend = reference.backend
    if backend is None:
        return
    covered = {sample.signature for sample in samples}
    ways = [[sample] for sample in samples]
    ways += [list(made_up(signature)) for key, signature in backend.signatures.items() if key not in covered]
    for way in ways:
        for sample in way:
            try:
                answer = backend.run(sample.signature, sample.inputs)
            except ServingError as error:
                logger.debug("signature %s does not take a sample: %s", sample.signature, error.message)
                continue
            _note(reference, sample, answer)
            break
    main = DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in backend.signatures else ""
    first = next((s for s in reference.samples if s.signature == main), None)
    reference.timed = _one_row(backend, first or next(iter(reference.samples), None))


def _note(reference: _Reference, sample: Sample, answer: Outputs) -> None:
    reference.samples.append(sample)
    reference.answers.append(answer)
    backend = reference.backend
    signature = backend.signatures.get(sample.signature) if backend is not None else None
    if backend is None or signature is None:
        return
    # A variant must take what the reference takes, or requests that were answered before would be refused; and a
    # runtime may go another way for a single row, which is what most requests are, and go wrong on it.
    for other in (without_ones(sample, signature), _first_row(sample)):
        if other is None:
            continue
        try:
            found = backend.run(other.signature, other.inputs)
        except ServingError:
            continue
        reference.samples.append(other)
        reference.answers.append(found)


def _first_row(sample: Sample) -> Sample | None:
    """Return the same request with its first row only; None when it has no more, or no rows at all."""
    rows = {array.shape[0] if array.ndim else 0 for array in sample.inputs.values()}
    if len(rows) != 1 or rows.pop() <= 1:
        return None
    return Sample(sample.signature, {alias: array[:1] for alias, array in sample.inputs.items()})


def _one_row(backend: Backend, sample: Sample | None) -> Sample | None:
    """Return the same request with its first row only, which is what most requests are; or as it is, if that fails."""
    if sample is None:
        return None
    short = _first_row(sample)
    if short is None:
        return sample
    try:
        backend.run(short.signature, short.inputs)
    except ServingError:
        return sample
    return short


def _try(candidate: Candidate, reference: _Reference, decisions: DecisionFile, budget_s: float) -> Backend | None:
    """Load, compare and time a variant; None when it must not serve."""
    name, decision = candidate.variant.name, decisions.decision
    if decisions.dangerous(name):
        _refuse(decision, name, "the process ended twice while it was tried")
        return None
    backend = None
    try:
        with decisions.trying(name):
            backend = candidate.load(None)
            served, reason = _compare(candidate.variant, backend, reference)
            if not served:
                backend.close()
                _refuse(decision, name, reason)
                return None
            if set(served) != set(_served(backend)):
                backend.close()
                backend = candidate.load(served)
            timed = _timed(backend, reference, served)
            decision.figures[name] = runs_per_second(backend, timed, budget_s) if timed is not None else 0.0
    except MoxserveError as error:
        if backend is not None:
            backend.close()
        _refuse(decision, name, error.message)
        return None
    decision.signatures[name] = sorted(served)
    return backend


def _served(backend: Backend) -> Sequence[str]:
    """Return the signatures that a variant serves itself."""
    return backend.served if isinstance(backend, VariantBackend) else tuple(backend.signatures)


def _timed(backend: Backend, reference: _Reference, served: Sequence[str]) -> Sample | None:
    """Return the request to time a variant with: the reference's, if the variant serves its signature."""
    if reference.timed is not None and reference.timed.signature in served:
        return reference.timed
    recorded_ones = [sample for sample in reference.samples if sample.signature in served]
    made = (sample for key in served for sample in made_up(backend.signatures[key]))
    return _one_row(backend, next(iter(recorded_ones), None) or next(made, None))


def _refuse(decision: Decision, name: str, why: str) -> None:
    decision.refused[name] = why
    decision.figures.pop(name, None)
    logger.warning("variant %s is not served: %s", name, why)


def _compare(variant: Variant, backend: Backend, reference: _Reference) -> tuple[list[str], str]:
    """Return the signatures in which a variant answers as the reference does; and why not, when there are none."""
    served = list(_served(backend))
    if reference.backend is None:
        if isinstance(variant.verification, Verification):
            return served, ""
        return [], "there is nothing to compare it with here, and the manifest does not say that it was verified"
    right: dict[str, bool] = {}
    reason = "there are no warmup records for its signatures, and inputs for them cannot be made up"
    for sample, answer in zip(reference.samples, reference.answers, strict=True):
        if sample.signature not in served:
            continue
        why = _differs(variant, backend, sample, answer)
        right[sample.signature] = right.get(sample.signature, True) and not why
        reason = f"signature {sample.signature!r} answers otherwise: {why}" if why else reason
    if not all(right.values()):
        return [], reason
    return [key for key in served if key in right], reason


def _differs(variant: Variant, backend: Backend, sample: Sample, answer: Outputs) -> str:
    try:
        return difference(variant, backend.run(sample.signature, sample.inputs), answer)
    except InvalidArgument as error:
        return f"it refuses what the other takes: {error.message}"


def most_precise(variants: Sequence[Variant]) -> Variant:
    """Return the variant that the others are held against when there is no SavedModel."""
    return min(variants, key=lambda v: (_PRECISIONS.index(v.precision), v.name))


def names_for(variant: Variant, keys: Sequence[str] | None, bound: Mapping[str, TensorNames]) -> dict[str, TensorNames]:
    """Return the bound signatures, only those of `keys` when they are given.

    Raises:
        DoesNotFitError: none is left.
    """
    kept = {key: names for key, names in bound.items() if keys is None or key in keys}
    if not kept:
        raise DoesNotFitError(f"variant {variant.name} serves none of {', '.join(keys or ())}")
    return kept
