"""Makes the variants of a staged version: converted, tried, judged; what is not good enough goes away again.

    prepare     the frozen, transformed graph                       in this process
    workshop    a converter for each target                         in a process of its own
    probe       each variant and the SavedModel, alone              in a process each
    judge       figures against limits and the user's conditions

The SavedModel stands first in everything: it is the form that the others are held against.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moxserve.errors import ExportError
from moxserve.export.facts import Figures
from moxserve.export.figures import figures, judge, with_singles
from moxserve.export.job import JobOptions
from moxserve.export.manifest import TensorNames, Variant, Verification
from moxserve.export.report.model import (
    CalibrationFacts,
    Report,
    RequirementResult,
    Sparsity,
    TransformStep,
    VariantReport,
)
from moxserve.export.requirements import Conditions, check_requirements, read_conditions
from moxserve.export.sources.base import StagedModel
from moxserve.export.targets import Target
from moxserve.export.tolerances import tolerance_for
from moxserve.export.variants.prepare import Prepared, prepare
from moxserve.export.variants.rows import RowSets, split_rows
from moxserve.export.variants.work import Built, Failure, Work
from moxserve.export.variants.workshop import Workshop
from moxserve.probe import ProbeOptions, ProbeResult, probe
from moxserve.talk import Talk

__all__ = ["SAVED_MODEL", "MadeVariants", "make_variants"]

SAVED_MODEL = "saved_model"
VARIANTS_DIR = "variants"
_GRAPH, _COMPILED = "model", "compiled"


@dataclass
class MadeVariants:
    """What came of the targets.

    Attributes:
        variants: for the manifest: the SavedModel first, then those that are good.
        reports: all that was tried, the SavedModel first.
        requirements: each condition, for each variant that it is about.
        steps: transforms of the frozen graph.
        nodes: in the frozen graph; None when nothing was frozen.
        sparsity: of pruned weights.
        calibration: None when nothing was calibrated.
        rows: real rows that were compared.
        notes: what the user should know.
        phases: phase -> seconds.
        failure: why nothing must be published; empty when something may.
        report: of all this; the exporter fills it in.
    """

    variants: tuple[Variant, ...] = ()
    reports: tuple[VariantReport, ...] = ()
    requirements: tuple[RequirementResult, ...] = ()
    steps: tuple[TransformStep, ...] = ()
    nodes: int | None = None
    sparsity: tuple[Sparsity, ...] = ()
    calibration: CalibrationFacts | None = None
    rows: int = 0
    notes: list[str] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    failure: str = ""
    report: Report | None = None


def make_variants(job: JobOptions, model: StagedModel, directory: str, talk: Talk) -> MadeVariants:
    """Make, try and judge every variant of a job.

    Args:
        job: which ones, and how.
        model: the SavedModel that is staged.
        directory: where it is; variants come beside it.
        talk: told in one line what happens.

    Returns:
        What came of it. What was dropped or failed is gone from the directory; `failure` says when the export must
        not be published.

    Raises:
        UsageError: a condition or a transform cannot be read, or an excluded operation does not exist.
    """
    options = job.variants
    conditions = read_conditions(options.require, options.limits, options.targets, measure=options.measure)
    scratch = os.path.join(directory, ".work")
    os.makedirs(scratch)
    try:
        return _Making(job, model, directory, scratch, talk).run(conditions)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _Making:
    """The work of one export."""

    def __init__(self, job: JobOptions, model: StagedModel, directory: str, scratch: str, talk: Talk) -> None:
        self._job, self._options, self._model = job, job.variants, model
        self._directory, self._scratch, self._talk = directory, scratch, talk
        self._made = MadeVariants()
        self._rows: RowSets
        self._whole: Mapping[str, np.ndarray] = {}
        self._learned = False

    def run(self, conditions: Conditions) -> MadeVariants:
        made = self._made
        self._rows = split_rows(self._model, self._calibration_rows(), os.path.join(self._scratch, "rows"))
        made.rows = self._rows.evaluation.count
        reports = [self._try_saved_model()]
        if reports[0].reasons:
            made.reports = tuple(reports)
            made.failure = f"the SavedModel cannot be served: {reports[0].reasons[0]}"
            return made
        source = Variant(
            name=SAVED_MODEL,
            format="saved_model",
            verification=self._model.verification,
            figures=reports[0].figures,
            measured=reports[0].measured,
        )
        entries = {SAVED_MODEL: source}
        prepared = self._prepare()
        # Learned ranges need no calibration: there is nothing to say of its rows.
        if self._rows.note and not (self._learned and made.rows):
            made.notes.insert(0, self._rows.note)
        if isinstance(prepared, Failure):
            reports += [_failed(target, prepared) for target in self._options.targets]
        else:
            with Workshop(os.path.join(self._scratch, "converters.log")) as workshop:
                for target in self._options.targets:
                    report, entry = self._make(target, prepared, workshop)
                    reports.append(report)
                    if entry is not None:
                        entries[target.name] = entry
        self._conclude(reports, entries, conditions)
        return made

    def _calibration_rows(self) -> int:
        needs = any(target.precision == "int8" for target in self._options.targets)
        return self._options.calibration_rows if needs else 0

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._made.phases[name] = self._made.phases.get(name, 0.0) + time.monotonic() - started

    def _prepare(self) -> Prepared | Failure:
        """Make the graph for the converters; a model that cannot be frozen has no variants."""
        self._talk("freezing the graph")
        try:
            with self._phase("prepare"):
                prepared = prepare(
                    self._directory, self._model.main, self._options, self._model.rows, self._libraries()
                )
                prepared.graph.write(os.path.join(self._scratch, _GRAPH))
                if prepared.compiled is not None:
                    prepared.compiled.write(os.path.join(self._scratch, _COMPILED))
        except ExportError as error:
            return Failure(error.message, error.hint or "")
        self._made.nodes = prepared.nodes
        self._made.steps = prepared.steps
        self._made.notes.extend(prepared.notes)
        self._made.sparsity = prepared.sparsity
        self._learned = prepared.graph.learned
        return prepared

    def _libraries(self) -> tuple[str, ...]:
        return tuple(os.path.join(self._directory, name) for name in self._model.op_libraries)

    def _probe(self, variant: Variant | None) -> ProbeResult:
        options = ProbeOptions(
            measure=self._options.measure,
            scratch=self._scratch,
            op_libraries=self._libraries(),
        )
        with self._phase("try"):
            return probe(self._directory, variant, self._model.main, self._rows.evaluation, options)

    def _figures(self, result: ProbeResult) -> Figures | None:
        """Compare what has a row for each input row with the source's answers, the rest with the SavedModel's.

        None without rows: that nothing is known is another thing than that nothing is wrong.
        """
        rows = self._rows.evaluation
        if not rows.count:
            return None
        expected = rows.load_outputs()
        found = figures(result.outputs, {**self._whole, **expected}, rows.load_labels(), rows.scores)
        found = found.model_copy(update={"rows": rows.count})
        singles = {alias: array for alias, array in result.singles.items() if alias in expected}
        return with_singles(found, singles, expected) if singles else found

    def _try_saved_model(self) -> VariantReport:
        self._talk("trying saved_model")
        result = self._probe(None)
        answered = self._rows.evaluation.outputs
        # Asked last, as those of the variants will be: of the same rows.
        self._whole = {alias: array for alias, array in result.outputs.items() if alias not in answered}
        return VariantReport(
            name=SAVED_MODEL,
            format="saved_model",
            path=".",
            verdict="source",
            reasons=(result.error,) if result.error else (),
            size_bytes=result.size_bytes,
            digest=result.digest,
            figures=self._figures(result) if not result.error else None,
            measured=result.measured,
            notes=result.notes,
            log=result.log if result.error else "",
        )

    def _make(self, target: Target, prepared: Prepared, workshop: Workshop) -> tuple[VariantReport, Variant | None]:
        self._talk(f"making {target.name}")
        folder = os.path.join(self._directory, VARIANTS_DIR, target.name)
        os.makedirs(folder)
        started = time.monotonic()
        with self._phase("convert"):
            built = workshop.convert(self._work(target, prepared, folder))
        if isinstance(built, Failure):
            return _failed(target, built), None
        took = time.monotonic() - started
        entry = _entry(target, built, prepared.graph.signature.name)
        result = self._probe(entry)
        report = VariantReport(
            name=target.name,
            format=entry.format,
            precision=target.precision,
            path=entry.path,
            build_s=took,
            size_bytes=result.size_bytes,
            digest=result.digest,
            measured=result.measured,
            notes=(*built.notes, *result.notes),
            details=dict(built.details),
        )
        if result.error:
            gone = {"verdict": "failed", "reasons": (result.error,), "path": "", "log": result.log}
            return report.model_copy(update=gone), None
        # A graph that was made less precise on purpose is held to what that allows, in whatever form it is then. One
        # with learned ranges rounds after each layer, where the last bit of a float decides on which side.
        rounded = prepared.quantized or prepared.graph.learned
        judged_as = "dynamic" if rounded and target.precision != "int8" else target.precision
        return self._judged(report, result, entry, judged_as)

    def _judged(
        self, report: VariantReport, result: ProbeResult, entry: Variant, precision: str
    ) -> tuple[VariantReport, Variant]:
        found = self._figures(result)
        reasons = judge(found, precision, max_drop=self._options.calibration.max_drop) if found is not None else ()
        verdict = "dropped" if reasons else "published"
        report = report.model_copy(update={"figures": found, "reasons": reasons, "verdict": verdict})
        tolerance = tolerance_for(precision)
        verification = Verification(
            mode="samples" if found is not None else "loaded",
            rows=found.rows if found is not None else 0,
            references=("source model",),
            atol=tolerance.atol or 0.0,
            rtol=tolerance.rtol or 0.0,
            max_abs_error=found.max_abs_error if found is not None else 0.0,
        )
        update: dict[str, Any] = {"figures": found, "measured": result.measured, "verification": verification}
        if precision != report.precision:
            update["tolerance"] = tolerance
        return report, entry.model_copy(update=update)

    def _work(self, target: Target, prepared: Prepared, folder: str) -> Work:
        compiled = prepared.compiled is not None and target == Target("frozen")
        return Work(
            target=target,
            model=os.path.join(self._scratch, _COMPILED if compiled else _GRAPH),
            signature=prepared.graph.signature,
            directory=folder,
            calibration=self._rows.calibration,
            evaluation=self._rows.evaluation,
            settings=self._options.calibration,
            opset=self._options.opset,
            learned=prepared.graph.learned,
        )

    def _conclude(
        self, reports: Sequence[VariantReport], entries: Mapping[str, Variant], conditions: Conditions
    ) -> None:
        """Drop what is over a limit, hold what is left against what is required, and take the rest away."""
        made = self._made
        limits = check_requirements(conditions.limits, reports)
        over = {result.variant: result.why for result in limits if not result.passed}
        made.reports = tuple(_dropped(report, over.get(report.name, "")) for report in reports)
        required = check_requirements(conditions.required, made.reports)
        made.requirements = (*limits, *required)
        made.failure = _failure(made.reports, required, conditions.demanded)
        if made.failure:
            made.reports = tuple(
                r.model_copy(update={"verdict": "passed"}) if r.verdict == "published" else r for r in made.reports
            )
        published = {report.name for report in made.reports if report.verdict in ("published", "source")}
        made.variants = tuple(entry for name, entry in entries.items() if name in published)
        for report in made.reports:
            if report.name not in published:
                shutil.rmtree(os.path.join(self._directory, VARIANTS_DIR, report.name), ignore_errors=True)
        _remove_if_empty(os.path.join(self._directory, VARIANTS_DIR))
        made.calibration = self._calibration_facts()

    def _calibration_facts(self) -> CalibrationFacts | None:
        if not self._calibration_rows():
            return None
        settings = self._options.calibration
        return CalibrationFacts(
            method="learned" if self._learned else settings.method,
            rows=0 if self._learned else self._rows.calibration.count,
            per_channel=settings.per_channel,
            exclude=settings.exclude,
            max_drop=settings.max_drop,
        )


def _entry(target: Target, built: Built, key: str) -> Variant:
    return Variant(
        name=target.name,
        format="saved_model" if target.format == "frozen" else target.format,
        path="/".join(part for part in (VARIANTS_DIR, target.name, built.file) if part),
        precision=target.precision,
        signatures={key: TensorNames(inputs=built.names.inputs, outputs=built.names.outputs)},
        details=dict(built.details),
    )


def _failed(target: Target, failure: Failure) -> VariantReport:
    reason = f"{failure.message} ({failure.hint})" if failure.hint else failure.message
    return VariantReport(
        name=target.name, format=target.format, precision=target.precision, verdict="failed", reasons=(reason,)
    )


def _dropped(report: VariantReport, why: str) -> VariantReport:
    if not why or report.verdict != "published":
        return report
    return report.model_copy(update={"verdict": "dropped", "reasons": (*report.reasons, why)})


def _failure(reports: Sequence[VariantReport], required: Sequence[RequirementResult], demanded: Sequence[str]) -> str:
    """Say why nothing must be published; empty when nothing speaks against it."""
    for report in reports:
        if report.name in demanded and report.verdict in ("failed", "dropped"):
            return f"variant {report.name} is required, and {report.verdict}: {'; '.join(report.reasons)}"
    missed = [result for result in required if not result.passed]
    if missed:
        return "; ".join(f"{result.variant}: {result.why}" for result in missed)
    return ""


def _remove_if_empty(folder: str) -> None:
    if os.path.isdir(folder) and not os.listdir(folder):
        os.rmdir(folder)
