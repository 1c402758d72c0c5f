"""What `wide_and_deep` makes of its parameters, on small tables: heads, weights, parts, optimizers, inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from moxserve_plugins.table.config import Table
from moxserve_plugins.wide_and_deep.config import WideAndDeep

import moxserve.tensorflow as mox
from moxserve.pipeline.slots import ParameterError

tf1 = tf.compat.v1
Make = Callable[..., Any]


@pytest.fixture
def small(tmp_path: Path) -> Make:
    """Write rows and return the input of them: `small("x,label", ["1,a", "2,b"], columns={"x": "float32"})`."""

    def make(header: str, rows: list[str], **more: Any) -> Any:
        path = tmp_path / "t.csv"
        path.write_text("\n".join([header, *rows]) + "\n")
        given = {"label": "y", "batch_size": len(rows), "shuffle": False, **more}
        return Table(train=str(path), eval=str(path), **given).build()

    return make


def train(data: Any, model: WideAndDeep, log_dir: Path, steps: int, **optimizers: Any) -> Any:
    fns = optimizers.get("fns") or mox.get_optimizer_fn("sgd", learning_rate=0.5)
    return mox.run(
        input_fn=data.input_fn, model_fn=model.build(data), optimizer_fn=fns, run_mode="TRAIN", auto_batch=False,
        batch_size=data.batch_size, log_dir=str(log_dir), max_number_of_steps=steps, log_every_n_steps=steps,
        save_summary_steps=0,
    )  # fmt: skip


def evaluate(data: Any, model: WideAndDeep, log_dir: Path) -> dict[str, float]:
    from moxserve.pipeline.steps import evaluate as run

    return run(data, model.build(data), str(log_dir), str(log_dir))


def variables(log_dir: Path) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(str(log_dir))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


@pytest.mark.slow
def test_a_wide_part_alone_is_a_logistic_regression(small: Make, tmp_path: Path):
    rows = ["0,a,no", "1,b,yes", "2,b,yes", "3,a,no", "4,b,no"]
    data = small("x,c,y", rows, columns={"x": "float32", "c": "string"})
    columns = {"x": {"kind": "numeric", "fit": True}, "c": {"kind": "vocabulary", "values": ["a", "b"]}}
    model = WideAndDeep(columns=columns, wide=["x", "c"])
    train(data, model, tmp_path / "run", 3)
    # Three steps of gradient descent, by hand.
    x = (np.arange(5) - 2.0) / np.arange(5).std()
    features = np.stack([x, [1, 0, 0, 1, 0], [0, 1, 1, 0, 1], np.ones(5)], 1)
    target, w = np.array([0, 1, 1, 0, 0]), np.zeros(4)
    for _ in range(3):
        w -= 0.5 * features.T @ (1 / (1 + np.exp(-features @ w)) - target) / 5
    found = variables(tmp_path / "run")
    np.testing.assert_allclose(found["wide/linear_model/x/weights"].ravel(), w[:1], rtol=1e-5)
    np.testing.assert_allclose(found["wide/linear_model/c/weights"].ravel(), w[1:3], rtol=1e-5)
    np.testing.assert_allclose(found["wide/linear_model/bias_weights"], w[3:], rtol=1e-5)
    np.testing.assert_allclose(found["normalization/x/mean"], [2.0])
    metrics = evaluate(data, model, tmp_path / "run")
    scores = features @ w
    wins = [(s > t) + 0.5 * (s == t) for s in scores[target == 1] for t in scores[target == 0]]
    assert metrics["auc"] == pytest.approx(np.mean(wins))
    assert metrics["loss"] == pytest.approx(np.mean(np.log1p(np.exp(np.where(target == 1, -scores, scores)))), rel=1e-5)


def test_weights_of_rows_and_classes_count(small: Make, tmp_path: Path):
    rows = ["1,no,2", "1,yes,1", "1,yes,0"]
    data = small("x,y,w", rows, columns={"x": "float32"}, weight="w")
    columns = {"x": {"kind": "numeric"}}
    model = WideAndDeep(columns=columns, wide=["x"], class_weights={"yes": 3.0})
    train(data, model, tmp_path / "run", 1)
    # At the start every score is 1/2, so that each row pulls with 1/2 times its weights: (-2 + 3*1 + 3*0) / 2 / 3.
    expected = 0.5 * (-2 + 3) / 2 / 3
    np.testing.assert_allclose(variables(tmp_path / "run")["wide/linear_model/bias_weights"], [expected], rtol=1e-5)
    with pytest.raises(ParameterError, match=r"model\.class_weights\.yess: no class 'yess'; did you mean 'yes'"):
        WideAndDeep(columns=columns, wide=["x"], class_weights={"yess": 1}).build(data)


@pytest.mark.slow
def test_each_part_has_its_optimizer(small: Make, tmp_path: Path):
    data = small("x,y", ["1,no", "2,yes"], columns={"x": "float32"})
    model = WideAndDeep(columns={"x": {"kind": "numeric"}}, wide=["x"], deep=["x"], hidden_units=[3])
    fns = [mox.get_optimizer_fn("ftrl", learning_rate=0.1), mox.get_optimizer_fn("adam", learning_rate=0.1)]
    train(data, model, tmp_path / "run", 2, fns=fns)
    names = set(variables(tmp_path / "run"))
    assert {"wide/linear_model/x/weights/Ftrl", "deep/hidden_0/weights/Adam"} <= names
    assert not any(name.startswith("deep/") for name in names if "Ftrl" in name)
    assert not any(name.startswith("wide/") for name in names if "Adam" in name)
    # One optimizer takes care of both.
    train(data, model, tmp_path / "other", 1, fns=mox.get_optimizer_fn("adagrad", learning_rate=0.1))
    assert sum("Adagrad" in name for name in variables(tmp_path / "other")) == 6


@pytest.mark.slow
def test_regression(small: Make, tmp_path: Path):
    rows = [f"{x},{3 * x + 1}" for x in range(-4, 5)]
    data = small("x,y", rows, columns={"x": "float32"}, label_dtype="float32", eval_batch_size=4)
    model = WideAndDeep(columns={"x": {"kind": "numeric", "fit": True}}, wide=["x"])
    train(data, model, tmp_path / "run", 60, fns=mox.get_optimizer_fn("sgd", learning_rate=0.2))
    metrics = evaluate(data, model, tmp_path / "run")
    assert set(metrics) == {"loss", "mean_squared_error", "mean_absolute_error"}
    assert metrics["mean_absolute_error"] < 1e-3
    with tf.Graph().as_default():
        inputs = [tf1.placeholder(tf.float32, [None]), tf1.placeholder(tf.float32, [None])]
        spec = model.build(data)(inputs, mode="EXPORT").export_spec
        assert (spec.scores, spec.regression, list(spec.outputs_dict)) == (None, "predictions", ["predictions"])


@pytest.mark.slow
def test_a_seed_makes_training_the_same_again(small: Make, tmp_path: Path):
    data = small("x,y", ["1,no", "2,yes", "3,no"], columns={"x": "float32"})
    found = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        model = WideAndDeep(columns={"x": {"kind": "numeric"}}, deep=["x"], hidden_units=[8], dropout=0.5, seed=seed)
        train(data, model, tmp_path / name, 3)
        found.append(variables(tmp_path / name)["deep/hidden_0/weights"])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    assert not np.allclose(found[0], found[2])


@pytest.mark.slow
def test_three_classes(small: Make, tmp_path: Path):
    data = small("c,y", ["a,x", "b,y", "c,z"] * 4, columns={"c": "string"})
    model = WideAndDeep(
        columns={"c": {"kind": "hash", "buckets": 997}, "i": {"kind": "indicator", "of": "c"}}, deep=["i"]
    )
    train(data, model, tmp_path / "run", 60)
    metrics = evaluate(data, model, tmp_path / "run")
    assert set(metrics) == {"loss", "accuracy"}
    assert metrics["accuracy"] == 1.0


@pytest.mark.slow
def test_an_export_takes_any_number_of_values_and_any_number(small: Make, tmp_path: Path):
    from moxserve.client import Client
    from moxserve.export.exporter import export_version
    from moxserve.export.job import ExportJob
    from moxserve.protocol.examples import make_example
    from moxserve.types import TensorSpec, dtype_by_name

    rows = ["a|b|c,1,no", "b,2,yes", "c|a,,yes", ",4,no"]
    tags = {"dtype": "string", "several": True}
    data = small("tags,n,y", rows, columns={"tags": tags, "n": {"dtype": "int64", "optional": True}})
    columns = {
        "tags": {"kind": "vocabulary", "values": ["a", "b", "c"]},
        "vector": {"kind": "embedding", "of": "tags", "dimension": 2, "combiner": "sqrtn"},
        "n": {"kind": "numeric", "missing": 3},
        "unused": {"kind": "numeric", "key": "n"},
    }
    model = WideAndDeep(columns=columns, deep=["vector", "n"], hidden_units=[4])
    train(data, model, tmp_path / "run", 2)
    inputs = [
        TensorSpec("tags", dtype_by_name("string"), (None, 3)),
        TensorSpec("n", dtype_by_name("int64"), (None,)),
        TensorSpec("label", dtype_by_name("int64"), (None,)),
    ]
    samples = [np.array([["a", "b", "c"], ["b", "", ""]], object), np.array([1, -1]), np.array([0, 1])]
    result = export_version(
        ExportJob(
            model_fn=model.build(data), inputs=inputs, checkpoint=tf.train.latest_checkpoint(str(tmp_path / "run")),
            base_dir=str(tmp_path / "model"), samples=samples,
        )
    )  # fmt: skip
    assert str(result.signatures["serving_default"]).startswith("serving_default(n: float32[?], tags: string[?, ?]) ")
    with Client(f"local:{tmp_path / 'model'}") as client:
        wide = client.predict(
            "model", {"n": np.array([3.0], np.float32), "tags": np.array([["c", "b", "a", "c", ""]], object)}
        )
        short = client.predict(
            "model", {"n": np.array([np.nan], np.float32), "tags": np.array([["c", "b", "a", "c"]], object)}
        )
        np.testing.assert_array_equal(wide["logits"], short["logits"])
        example = make_example({"tags": ["c", "b", "a", "c"]}).SerializeToString()
        parsed = client.predict("model", {"examples": np.array([example], object)}, signature="predict")
        np.testing.assert_allclose(parsed["logits"], short["logits"], rtol=1e-6)


@pytest.mark.slow
def test_evaluation_in_the_middle_of_training_shares_variables(small: Make, tmp_path: Path):
    data = small("x,c,y", ["1,a,no", "2,b,yes", "3,a,yes"], columns={"x": "float32", "c": "string"})
    columns = {
        "x": {"kind": "numeric", "fit": True},
        "c": {"kind": "hash", "buckets": 9},
        "d": {"kind": "hash", "key": "c", "buckets": 9},
        "e": {"kind": "shared_embedding", "of": ["c", "d"], "dimension": 2},
    }
    model = WideAndDeep(columns=columns, wide=["c"], deep=["x", "e"], hidden_units=[4])
    inner = model.build(data)
    seen: list[dict[str, float]] = []

    class Watch(mox.LogEvaluationMetricHook):
        def evaluated(self, values: Any, run_context: Any) -> None:
            seen.append(dict(values))

    def model_fn(inputs: Any, mode: str, **_: Any) -> Any:
        spec = inner(inputs, mode)
        spec.hooks.append(Watch(spec.log_info, batch_size=3, samples_in_train=3, samples_in_eval=3))
        return spec

    result = mox.run(
        input_fn=data.input_fn, model_fn=model_fn, optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.1),
        run_mode="TRAIN", inter_mode="EVAL", auto_batch=False, batch_size=3, log_dir=str(tmp_path / "run"),
        max_number_of_steps=2, save_summary_steps=0,
    )  # fmt: skip
    assert result.global_step == len(seen) == 2
    after = evaluate(data, model, tmp_path / "run")
    assert seen[-1] == pytest.approx(after, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "more", "told"),
    [
        ("z", {}, r"model\.columns\.z: reads 'z'; the input gives no such tensor; known: label, x"),
        ("x", {"num_classes": 3}, r"model\.num_classes: expected 2, the classes of the input, got 3"),
    ],
)
def test_what_does_not_go_with_the_input(small: Make, name: str, more: Any, told: str):
    data = small("x,y", ["1,no", "2,yes"], columns={"x": "float32"})
    with pytest.raises(ParameterError, match=told):
        WideAndDeep(columns={name: {"kind": "numeric"}}, wide=[name], **more).build(data)


def test_without_a_label_there_is_nothing_to_learn(small: Make):
    data = small("x,y", ["1,no"], columns={"x": "float32"}, label=None)
    with pytest.raises(ParameterError, match="gives no tensor 'label' to learn"):
        WideAndDeep(columns={"x": {"kind": "numeric"}}, wide=["x"]).build(data)


def test_a_number_that_is_missing_must_be_told_what_it_counts_as(small: Make, tmp_path: Path):
    given = {"columns": {"x": {"optional": True}, "n": {"dtype": "int64", "optional": True}}}
    data = small("x,n,y", ["1,2,no", ",3,yes", "3,,no"], **given)
    for name, line in (("x", 3), ("n", 4)):
        with pytest.raises(ParameterError, match=rf"missing: is needed: .*t\.csv:{line} has no number '{name}'"):
            WideAndDeep(columns={"c": {"kind": "numeric", "key": name}}, deep=["c"]).build(data)
        WideAndDeep(columns={"c": {"kind": "numeric", "key": name, "missing": 0}}, deep=["c"]).build(data)
    assert small("x,n,y", ["1,2,no", "2,3,yes"], **given).missing == {}
