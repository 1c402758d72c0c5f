"""Variants as an export makes them: rows, comparison, verdict."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import VerificationError
from moxserve.export.job import GraphJob
from moxserve.export.manifest import Source, Verification
from moxserve.export.sources.base import StagedModel
from moxserve.export.targets import Calibration, Target, VariantOptions
from moxserve.export.variants.rows import split_rows
from moxserve.types import Signature


def staged(count: int) -> StagedModel:
    rows = {"x": np.arange(count, dtype=np.float32)} if count else {}
    verification = Verification(mode="samples", rows=count, references=(), atol=0, rtol=0, max_abs_error=0)
    return StagedModel({"m": Signature("m", "")}, "m", rows, {}, None, "", verification, Source())


@pytest.mark.parametrize(
    ("count", "wanted", "calibrated", "judged"),
    [
        (384, 128, 128, 256),
        (256, 128, 128, 128),
        (200, 128, 100, 100),
        (129, 128, 64, 65),
        (128, 128, 128, 128),
        (1, 128, 1, 1),
        (50, 0, 0, 50),
        (0, 128, 0, 0),
    ],
)
def test_half_of_the_rows_at_least_judge(count: int, wanted: int, calibrated: int, judged: int, tmp_path: Path) -> None:
    sets = split_rows(staged(count), wanted, str(tmp_path / "rows"))
    assert (sets.calibration.count, sets.evaluation.count) == (calibrated, judged)
    assert bool(sets.note) == (calibrated < wanted or count <= wanted)
    if count > wanted > 0:
        apart = [part.load_inputs()["x"] for part in (sets.evaluation, sets.calibration)]
        np.testing.assert_array_equal(np.sort(np.concatenate(apart)), np.arange(count))
        # Rows that lie class by class: ranges must have seen all of them.
        assert np.ptp(np.diff(apart[1])) <= 1
        assert apart[1][-1] == count - 1


def test_options_without_effect_are_told() -> None:
    told = VariantOptions(
        xla=True, opset=12, transforms="sort_by_execution_order", calibration=Calibration(percentile=99.0)
    ).without_effect()
    assert told == (
        "transforms has no effect: no variant is made",
        "xla has no effect: no frozen graph in float32 is made",
        "opset has no effect: no ONNX model is made",
        "percentile has no effect: the calibration is by minmax",
    )
    fine = VariantOptions(
        targets=(Target("frozen"), Target("onnx", "int8")), xla=True, opset=12, calibration=Calibration("entropy")
    )
    assert fine.without_effect() == ()
    assert VariantOptions().without_effect() == ()
    only = VariantOptions(targets=(Target("onnx"),), calibration=Calibration(exclude=("a*",)))
    assert only.without_effect() == ("calibration has no effect: no int8 variant is made",)


@pytest.mark.slow
def test_without_rows_nothing_is_known_and_no_condition_holds(tmp_path: Path, export: Any) -> None:
    from moxserve.tensorflow.executor.env import tf, tf1

    with tf.Graph().as_default() as graph:
        tf.nn.softmax(tf1.placeholder(tf.float32, [None, 3], "x"), name="scores")
        (tmp_path / "net.pb").write_bytes(graph.as_graph_def().SerializeToString())
    options = VariantOptions(
        targets=(Target("frozen"),), measure=False, limits=("frozen.size_mb<=1",), require=("frozen.rel_l2<=1",)
    )
    job = GraphJob(str(tmp_path / "net.pb"), base_dir=str(tmp_path / "models"), variants=options)
    with pytest.raises(VerificationError, match="frozen: rel_l2 of frozen is not known"):
        export(job)
    result = export(dataclasses.replace(job, variants=dataclasses.replace(options, require=("frozen",))))
    frozen = result.report.variant("frozen")
    assert (frozen.verdict, frozen.figures) == ("published", None)
    assert "no real rows: it was only loaded" in frozen.notes


@pytest.mark.slow
@pytest.mark.parametrize("batch", [8, None], ids=["fixed", "free"])
def test_outputs_of_any_kind_are_compared(batch: int | None, tmp_path: Path, export: Any) -> None:
    """A fixed batch, a number for the whole batch, and a table that no row changes."""
    from moxserve.export.report import read_report
    from moxserve.tensorflow.executor.env import tf, tf1

    with tf.Graph().as_default() as graph:
        x = tf1.placeholder(tf.float32, [batch, 6], "x")
        weights = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)
        scores = tf.nn.softmax(tf.matmul(x, weights), name="scores")
        tf.reduce_mean(scores, name="mean")
        tf.constant(np.arange(64.0), name="table")
        (tmp_path / "net.pb").write_bytes(graph.as_graph_def().SerializeToString())
    outputs = {"scores": "scores", "mean": "mean", "table": "table"}
    rows = np.random.default_rng(2).standard_normal((70, 6)).astype(np.float32)
    job = GraphJob(
        str(tmp_path / "net.pb"),
        base_dir=str(tmp_path / "models"),
        samples={"x": rows},
        outputs=outputs,
        variants=VariantOptions(targets=(Target("frozen"),), measure=False, require=("frozen",)),
    )
    result = export(job)
    report = read_report(str(Path(result.path) / "assets.extra" / "report"))
    figures = report.variant("frozen").figures
    assert {one.output for one in figures.outputs} == set(outputs)
    assert figures.problems == ()
    assert figures.rows == (64 if batch else 70)
    assert figures.single_rows == (0 if batch else 8)
