"""An artifact that answers differently is never published."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import UsageError, VerificationError
from moxserve.export.job import ExportJob


@pytest.fixture
def by_mode() -> Callable[..., Any]:
    """A model_fn whose output is `change(tf, y, mode, call)` of half_plus_two's y; call counts from 1."""

    def make(half_plus_two: Any, change: Callable[..., Any], always: bool = True) -> Any:
        calls: list[str] = []

        def model_fn(inputs: Any, mode: str) -> Any:
            from moxserve.tensorflow.executor.env import tf
            from moxserve.tensorflow.executor.spec import ExportSpec, ModelSpec

            calls.append(mode)
            spec = half_plus_two(inputs, mode).export_spec
            y = change(tf, spec.outputs_dict["y"], mode, len(calls))
            exported = ExportSpec(spec.inputs_dict, {"y": y}) if always or mode == "EXPORT" else None
            return ModelSpec(log_info={"size": tf.size(y)}, export_spec=exported)

        return model_fn

    return make


def _nothing_published(tmp_path: Path) -> bool:
    return os.listdir(tmp_path / "half") == []


def test_a_model_fn_that_differs_between_calls_is_caught(
    half_job: ExportJob, half_plus_two: Any, by_mode: Any, export: Any, tmp_path: Path
) -> None:
    def change(tf: Any, y: Any, mode: str, call: int) -> Any:
        return y + tf.constant([0.0] * 33 + [call - 1.0] + [0.0] * 6)

    with pytest.raises(VerificationError) as raised:
        export(half_job, model_fn=by_mode(half_plus_two, change), warmup_batches=())
    x = float(half_job.samples[0][33])
    assert raised.value.exit_code == 5
    assert raised.value.message == (
        "verifying the SavedModel: signature 'serving_default', output 'y' differs from the EXPORT graph: "
        f"at [33] it is {np.float32(x / 2 + 3):.9g} and should be {np.float32(x / 2 + 2):.9g} "
        f"(1 of 40 values differ; max abs error 1, max rel error {1 / (x / 2 + 2):.3g}, "
        "tolerance atol 1e-05 + rtol 0.0001)"
    )
    assert "must build the same computation" in str(raised.value.hint)
    assert _nothing_published(tmp_path)


def test_the_tolerance_is_the_users(half_job: ExportJob, half_plus_two: Any, by_mode: Any, export: Any) -> None:
    model_fn = by_mode(half_plus_two, lambda tf, y, mode, call: y * (1 + 0.01 * (call > 1)))
    result = export(half_job, model_fn=model_fn, rtol=0.02)
    assert 0.06 < result.max_abs_error < 0.08


def test_a_model_that_differs_from_mode_eval_is_caught(
    half_job: ExportJob, half_plus_two: Any, by_mode: Any, export: Any, tmp_path: Path
) -> None:
    model_fn = by_mode(half_plus_two, lambda tf, y, mode, call: y + 0.5 if mode == "EXPORT" else y)
    with pytest.raises(VerificationError, match="output 'y' differs from the EVAL graph: at ") as raised:
        export(half_job, model_fn=model_fn)
    assert "in mode EXPORT than in mode EVAL" in str(raised.value.hint)
    assert _nothing_published(tmp_path)
    result = export(half_job, model_fn=model_fn, check_eval=False)
    assert result.notes == ("not compared with the EVAL graph",)


def test_without_an_export_spec_in_mode_eval_it_says_so(
    half_job: ExportJob, half_plus_two: Any, by_mode: Any, export: Any
) -> None:
    model_fn = by_mode(half_plus_two, lambda tf, y, mode, call: y, always=False)
    result = export(half_job, model_fn=model_fn)
    assert result.notes == ("not compared with the EVAL graph: model_fn gives no ExportSpec in mode EVAL",)


def test_a_model_fn_that_does_not_know_mode_eval_is_exported(
    half_job: ExportJob, half_plus_two: Any, by_mode: Any, export: Any
) -> None:
    def change(tf: Any, y: Any, mode: str, call: int) -> Any:
        return {"EXPORT": y}[mode]

    result = export(half_job, model_fn=by_mode(half_plus_two, change))
    assert result.notes == ("not compared with the EVAL graph: KeyError: 'EVAL'",)
    assert result.verified_rows == 40


def test_a_random_model_is_told_apart(half_job: ExportJob, half_plus_two: Any, by_mode: Any, export: Any) -> None:
    model_fn = by_mode(half_plus_two, lambda tf, y, mode, call: tf.nn.dropout(y, rate=0.5))
    with pytest.raises(VerificationError) as raised:
        export(half_job, model_fn=model_fn)
    assert "is dropout on in mode EXPORT?" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tf, y, call: tf.cast(y, tf.int32) + (call > 1), "at .* it is -2 and should be -3"),
        (lambda tf, y, call: tf.strings.as_string(y) + ("x" if call > 1 else ""), "it is b'-3.000000x' and should be"),
        (lambda tf, y, call: (y > 0) ^ (call > 1), "it is True and should be False"),
        (lambda tf, y, call: y + (np.nan if call > 1 else 0), "it is nan and should be -3 "),
        (lambda tf, y, call: y + (0 if call > 1 else np.inf), "it is -3 and should be inf"),
        (lambda tf, y, call: y[: 3 + call], r"the artifact gives float32\[5\], the EXPORT graph float32\[4\]"),
        (lambda tf, y, call: tf.cast(y, [tf.float32, tf.float64][call - 1]), "the artifact gives float64"),
    ],
    ids=["int", "string", "bool", "nan", "inf", "shape", "dtype"],
)
def test_every_kind_of_difference_is_named(
    change: Any, message: str, half_job: ExportJob, half_plus_two: Any, by_mode: Any, export: Any
) -> None:
    model_fn = by_mode(half_plus_two, lambda tf, y, mode, call: change(tf, y, call))
    with pytest.raises(VerificationError, match=message):
        export(half_job, model_fn=model_fn)


def test_nan_in_both_is_equal(half_job: ExportJob, half_plus_two: Any, by_mode: Any, export: Any) -> None:
    result = export(half_job, model_fn=by_mode(half_plus_two, lambda tf, y, mode, call: tf.sqrt(y) / (y - y)))
    assert result.max_abs_error == 0
    assert result.verified_rows == 40


def test_without_samples_zeros_are_compared_and_that_is_told(half_job: ExportJob, export: Any) -> None:
    from moxserve.export.manifest import read_manifest

    result = export(half_job, samples=())
    assert result.verified_rows == 0
    assert result.warmup_records == 0
    assert result.notes == ("no samples: one row of zeros was compared, and no warmup records were written",)
    manifest = read_manifest(result.path)
    assert manifest is not None
    assert manifest.variants[0].verification.mode == "zeros"


def test_a_model_that_refuses_zeros_is_loaded_and_nothing_more(
    half_job: ExportJob, half_plus_two: Any, by_mode: Any, export: Any
) -> None:
    from moxserve.export.manifest import read_manifest

    def change(tf: Any, y: Any, mode: str, call: int) -> Any:
        with tf.control_dependencies([tf.compat.v1.assert_greater(tf.size(y), 1)]):
            return tf.identity(y)

    manifest = read_manifest(export(half_job, model_fn=by_mode(half_plus_two, change), samples=()).path)
    assert manifest is not None
    assert manifest.variants[0].verification.mode == "loaded"


def test_a_difference_on_zeros_fails_as_well(
    half_job: ExportJob, half_plus_two: Any, by_mode: Any, export: Any
) -> None:
    with pytest.raises(VerificationError, match=r"at \[0\] it is 3 and should be 2"):
        export(half_job, model_fn=by_mode(half_plus_two, lambda tf, y, mode, call: y + (call > 1)), samples=())


def test_a_fixed_batch_that_is_not_filled_is_told(half_job: ExportJob, spec: Any, export: Any) -> None:
    result = export(half_job, inputs=[spec("x", "float32", 64)])
    assert result.notes == ("40 samples do not fill the fixed batch of 64: they were not compared",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": [np.zeros(3), np.zeros(3)]}, "samples has 2 arrays; model_fn has 1 inputs"),
        ({"samples": [np.zeros((3, 7), np.float32)]}, r"samples of input 'x' are float32\[3, 7\]; .* x: float32\[\?\]"),
        ({"samples": [np.zeros(3)]}, r"samples of input 'x' are float64\[3\]"),
        ({"samples": [np.float32(1)]}, r"one first dimension, the rows; got x \[\]"),
        ({"inputs": ()}, "at least one input"),
        ({"atol": -1.0}, "atol -1.0: expected a number of at least 0"),
        ({"rtol": float("nan")}, "rtol nan: expected"),
        ({"model_name": ""}, "model_name is empty"),
    ],
)
def test_a_job_that_makes_no_sense_is_refused(
    changes: dict[str, Any], message: str, half_job: ExportJob, export: Any
) -> None:
    with pytest.raises(UsageError, match=message):
        export(half_job, **changes)
