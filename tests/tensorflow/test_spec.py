"""ModelSpec and ExportSpec: what is refused, by which words; and the documents' examples of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf, tf1

Train = Callable[..., mox.RunResult]

NUMBERS = {
    "text": (lambda: {"log_info": {"name": tf.constant("x")}}, r"log_info\['name'\] is string; expected a number"),
    "bool": (lambda: {"log_info": {"right": tf.constant(True)}}, r"log_info\['right'\] is bool; expected a number"),
    "vector": (lambda: {"log_info": {"v": tf.zeros([2])}}, r"log_info\['v'\] has the shape \(2,\); expected a scalar"),
    "array": (lambda: {"log_info": {"v": np.float32(1)}}, r"log_info\['v'\] is a float32, not a tensor"),
    "blank": (lambda: {"log_info": {" ": tf.constant(1.0)}}, r"log_info has the key ' '; expected a name that can be"),
    "tab": (lambda: {"log_info": {"a\tb": tf.constant(1.0)}}, r"log_info has the key 'a\\tb'; expected a name"),
    "number": (lambda: {"log_info": {1: tf.constant(1.0)}}, r"log_info has the key 1; expected a name"),
    "no dict": (lambda: {"log_info": [tf.constant(1.0)]}, r"log_info must be a dict of name: tensor, not list"),
    "whole loss": (lambda: {"loss": tf.constant(1)}, r"loss 'Const:0' is int32, which has no gradient"),
    "vector loss": (lambda: {"loss": tf.zeros([3])}, r"loss\['\[0\]'\] has the shape \(3,\); expected a scalar"),
    "hooks": (lambda: {"hooks": tf1.train.SessionRunHook()}, r"hooks must be a list of hooks, not SessionRunHook"),
    "misspelt": (lambda: {"los": tf.constant(1.0)}, r"mox\.ModelSpec has no argument 'los'; did you mean 'loss'\?"),
    "twice": (lambda: {"output_info": {}, "output_dict": {}}, r"got both output_dict and output_info"),
}


@pytest.mark.parametrize(("fields", "message"), NUMBERS.values(), ids=NUMBERS.keys())
def test_a_field_of_another_kind_is_told(fields: Callable[[], dict[str, Any]], message: str, train: Train) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        w = tf1.get_variable("w", [], initializer=tf1.zeros_initializer())
        return mox.ModelSpec(**{"loss": w * w, **fields()})

    with pytest.raises(ModelSpecError, match=message):
        train(model_fn=model_fn)


@pytest.mark.parametrize(
    ("mode", "field"),
    [("TRAIN", "loss"), ("EVAL", "log_info"), ("PREDICT", "output_info")],
)
def test_the_field_that_a_mode_needs_is_named(mode: str, field: str, train: Train, tmp_path: Path) -> None:
    train(log_dir=str(tmp_path), max_number_of_steps=1)
    options: dict[str, Any] = {} if mode == "TRAIN" else {"log_dir": str(tmp_path)}
    if mode == "PREDICT":
        options["output_fn"] = lambda outputs: None
    with pytest.raises(ModelSpecError, match=f"without {field}, which {mode} needs") as caught:
        train(run_mode=mode, model_fn=lambda inputs, mode: mox.ModelSpec(), **options)
    assert f"ModelSpec({field}=" in str(caught.value.hint)


@pytest.mark.slow
def test_an_export_needs_its_own_field(train: Train, linear: Any, tmp_path: Path) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = linear.model_fn(inputs, mode)
        spec.export_spec = None
        return spec

    with pytest.raises(ModelSpecError, match="without export_spec, which EXPORT needs"):
        train(model_fn=model_fn, log_dir=str(tmp_path), max_number_of_steps=1, export_model=mox.ExportKeys.TF_SERVING)


def test_misspelt_names_are_told_their_neighbours() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'MokeKeys'; did you mean 'ModeKeys'"):
        mox.MokeKeys.TRAIN  # noqa: B018 - as the API document spells it once
    with pytest.raises(AttributeError, match="ModeKeys has no 'TRIAN'; did you mean 'TRAIN'"):
        mox.ModeKeys.TRIAN  # noqa: B018
    with pytest.raises(AttributeError, match="ExportKeys has no 'tf_serving'; did you mean 'TF_SERVING'"):
        mox.ExportKeys.tf_serving  # noqa: B018
    with pytest.raises(ModelSpecError, match=r"mox\.ExportSpec has no argument 'versoin'; did you mean 'version'"):
        mox.ExportSpec({"a": 1}, {"b": 2}, versoin=1)
    assert not hasattr(mox, "flags")


@pytest.mark.slow
def test_the_batch_dimension_of_an_export_is_open_where_batches_are_made_here(
    train: Train, linear: Any, tmp_path: Path
) -> None:
    def batches(mode: str) -> Any:
        x, y = linear.input_fn(mode)
        return tf1.train.batch([x, y], 10) if mode == mox.ModeKeys.TRAIN else (x, y)

    shapes = []
    for auto_batch in (True, False):
        log_dir = str(tmp_path / str(auto_batch))
        options: dict[str, Any] = {} if auto_batch else {"input_fn": batches}
        result = train(
            auto_batch=auto_batch,
            log_dir=log_dir,
            max_number_of_steps=1,
            export_model=mox.ExportKeys.TF_SERVING,
            **options,
        )
        with tf1.Graph().as_default(), tf1.Session() as session:
            loaded = tf1.saved_model.load(session, ["serve"], result.export.path)
            assert {op.device for op in session.graph.get_operations()} == {""}
        sizes = loaded.signature_def["serving_default"].inputs["x"].tensor_shape.dim
        shapes.append([size.size for size in sizes])
    assert shapes == [[-1, 3], [10, 3]]


# The examples of the API document, section 2, `mox.ModelSpec`.


def test_example_2_feeds_a_placeholder_by_a_hook(train: Train, tmp_path: Path) -> None:
    def model_fn(inputs: list[Any], run_mode: str, **kwargs: Any) -> mox.ModelSpec:
        del inputs
        x = tf1.placeholder(dtype=tf.float32, shape=())

        class FeedRunHook(mox.AggregativeSessionRunHook):
            def before_run(self, run_context: Any) -> Any:
                feed_x = 1.0
                return tf1.train.SessionRunArgs(fetches=None, feed_dict={x: feed_x})

            def support_aggregation(self) -> bool:
                return False

            def support_sync_workers(self) -> bool:
                return False

            def run_inter_mode(self) -> bool:
                return False

        return mox.ModelSpec(log_info={"x": x}, hooks=[FeedRunHook()])

    train(log_dir=str(tmp_path), max_number_of_steps=1)
    result = train(run_mode=mox.ModeKeys.EVAL, model_fn=model_fn, checkpoint_path=str(tmp_path), max_number_of_steps=3)
    assert result.metrics == {"x": 1.0}


def test_example_3_trains_each_loss_on_its_own_scope(train: Train, tmp_path: Path, variable: Any) -> None:
    def model_fn(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
        weights = []
        for name, reuse in (("generator", False), ("discriminator", False), ("discriminator", True)):
            with tf1.variable_scope(name, reuse=reuse):
                weights.append(tf1.get_variable("w", [], initializer=tf1.ones_initializer()))
        generator, real, fake = weights
        d_loss, g_loss = real * 2.0 - fake * generator, fake * generator * 3.0
        return mox.ModelSpec(
            loss=[d_loss, g_loss],
            var_scopes=[["discriminator"], ["generator"]],
            log_info={"D_loss": d_loss, "G_loss": g_loss},
        )

    result = train(
        model_fn=model_fn,
        optimizer_fn=[mox.get_optimizer_fn("sgd", learning_rate=rate) for rate in (0.1, 0.01)],
        max_number_of_steps=1,
        log_dir=str(tmp_path),
    )
    assert variable(result.checkpoint, "discriminator/w") == pytest.approx(1 - 0.1 * (2 - 1))
    assert variable(result.checkpoint, "generator/w") == pytest.approx(1 - 0.01 * 3)  # of its own loss alone


def test_example_4_spells_output_info_another_way(train: Train, linear: Any, tmp_path: Path) -> None:
    def model_fn(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
        spec = linear.model_fn(inputs, mode)
        return mox.ModelSpec(loss=spec.loss, output_dict={"predictions": spec.output_info["predicted"]})

    train(model_fn=model_fn, log_dir=str(tmp_path), max_number_of_steps=1)
    seen: list[Any] = []
    train(
        run_mode=mox.ModeKeys.PREDICT,
        model_fn=model_fn,
        log_dir=str(tmp_path),
        output_fn=lambda outputs, **kwargs: seen.append(outputs),
        output_every_n_steps=2,
        max_number_of_steps=4,
    )
    assert [len(outputs) for outputs in seen] == [2, 2]
    assert {key: value.shape for key, value in seen[1][0].items()} == {"predictions": (10,)}
