"""`mox.run(export_model=...)` and the server's backend: the two neighbours of an export."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import UsageError, VersionExistsError
from moxserve.export.manifest import check_files, read_manifest

ROWS = np.random.default_rng(0).normal(size=(100, 6)).astype(np.float32)
LABELS = (ROWS.sum(1) > 0).astype(np.int64)


def _train(
    log_dir: Path, *, auto_batch: bool = True, version: int = -1, steps: int = 4, export: Any = "TF_SERVING"
) -> Any:
    import moxserve.tensorflow as mox
    from moxserve.tensorflow.executor.env import tf, tf1

    def input_fn(mode: str, **kwargs: Any) -> Any:
        data = tf.data.Dataset.from_tensor_slices((ROWS, LABELS)).repeat()
        if not auto_batch:
            data = data.batch(10, drop_remainder=True)
        return tf1.data.make_one_shot_iterator(data).get_next()

    def model_fn(inputs: Any, mode: str, **kwargs: Any) -> Any:
        rows, labels = inputs
        logits = tf.matmul(rows, tf1.get_variable("w", [6, 2], initializer=tf1.ones_initializer()))
        loss = tf1.losses.sparse_softmax_cross_entropy(labels, logits)
        outputs = {"logits": logits, "scores": tf.nn.softmax(logits)}
        spec = mox.ExportSpec({"rows": rows}, outputs, version, scores="scores", labels=["minus", "plus"])
        return mox.ModelSpec(loss=loss, log_info={"loss": loss}, export_spec=spec)

    return mox.run(
        input_fn=input_fn,
        model_fn=model_fn,
        optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.1),
        run_mode=mox.ModeKeys.TRAIN,
        batch_size=10,
        auto_batch=auto_batch,
        log_dir=str(log_dir),
        max_number_of_steps=steps,
        export_model=export,
    )


def test_a_training_ends_with_a_version_in_its_log_dir(tmp_path: Path) -> None:
    result = _train(tmp_path)
    assert result.export.path == str(tmp_path / "1")
    assert result.export.verified_rows == 32
    assert result.export.max_abs_error == 0
    assert str(result.export.signatures["serving_default"]).startswith("serving_default(rows: float32[?, 6])")
    manifest = read_manifest(result.export.path)
    assert manifest is not None
    assert manifest.source.global_step == 4
    assert _train(tmp_path, steps=6).export.version == 2


def test_there_is_a_kind_for_every_form_that_can_be_made() -> None:
    import moxserve.tensorflow as mox
    from moxserve.export.targets import targets_by_name

    assert {kind for kind in mox.ExportKeys.ALL if kind != "TF_SERVING"} == {name.upper() for name in targets_by_name()}
    assert all(getattr(mox.ExportKeys, kind) == kind for kind in mox.ExportKeys.ALL)


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        (None, ()),
        (False, ()),
        (True, ("TF_SERVING",)),
        ("ONNX", ("ONNX",)),
        (["ONNX", "TFLITE_INT8", "ONNX"], ("ONNX", "TFLITE_INT8")),
        ([], ()),
    ],
)
def test_export_model_is_a_kind_or_a_list_of_kinds(given: Any, kinds: tuple[str, ...]) -> None:
    import moxserve.tensorflow as mox

    assert mox.ExportKeys.resolve(given) == kinds


def test_an_unknown_kind_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="export_model='ONNX_INT4' is not a kind of artifact; did you mean 'ONNX_INT8'"
    ):
        _train(tmp_path, export=["ONNX", "ONNX_INT4"])
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_a_training_ends_with_the_forms_that_were_asked_for(tmp_path: Path) -> None:
    export = _train(tmp_path, export=["FROZEN", "ONNX"]).export
    manifest = read_manifest(export.path)
    assert manifest is not None
    assert [v.name for v in manifest.variants] == ["saved_model", "frozen", "onnx"]
    assert os.path.exists(os.path.join(export.path, "variants", "onnx", "model.onnx"))


def test_without_auto_batch_the_shape_stays_that_of_training(tmp_path: Path) -> None:
    export = _train(tmp_path, auto_batch=False).export
    assert str(export.signatures["serving_default"]).startswith("serving_default(rows: float32[10, 6])")
    assert export.verified_rows == 30  # whole batches of the rows that the run kept
    assert export.warmup_records == 2


def test_a_version_that_is_there_fails_in_moxings_words(tmp_path: Path) -> None:
    assert _train(tmp_path, version=3).export.version == 3
    with pytest.raises(VersionExistsError, match=r"Export directory already exists. Please specify a different"):
        _train(tmp_path, version=3, steps=6)
    assert [name for name in os.listdir(tmp_path) if name.isdigit()] == ["3"]


def test_the_servers_backend_answers_as_the_model_does(tmp_path: Path) -> None:
    from moxserve.protocol.examples import make_example
    from moxserve.serving.backends import load
    from moxserve.serving.source import find_versions

    export = _train(tmp_path).export
    found = find_versions(str(tmp_path))
    assert found.versions[1].sealed
    assert found.incomplete == {}
    backend = load(export.path)
    try:
        assert backend.signatures == dict(export.signatures)
        predicted = backend.run("serving_default", {"rows": ROWS[:7]})
        examples = np.array([make_example({"rows": row}).SerializeToString() for row in ROWS[:7]], dtype=object)
        classified = backend.run("classify", {"inputs": examples})
    finally:
        backend.close()
    np.testing.assert_array_equal(classified["scores"], predicted["scores"])
    assert classified["classes"].tolist() == [[b"minus", b"plus"]] * 7


def test_a_version_that_lost_a_file_is_told(tmp_path: Path) -> None:
    from moxserve.serving.source import find_versions

    export = _train(tmp_path).export
    os.remove(os.path.join(export.path, "variables", "variables.index"))
    assert check_files(export.path) == ["variables/variables.index is missing"]
    assert list(find_versions(str(tmp_path)).incomplete) == [1]
