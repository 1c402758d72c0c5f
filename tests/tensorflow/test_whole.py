"""Values that an evaluation computes over all rows, and the area under the curve as one of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import moxserve.tensorflow as mox
from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.whole import over_rows_of

tf1 = tf.compat.v1
ROWS = st.lists(st.tuples(st.booleans(), st.sampled_from([-1.0, 0.0, 0.25, 0.5, 3.0])), min_size=2, max_size=30)


@pytest.mark.slow
@settings(max_examples=30)
@given(ROWS)
def test_auc_is_that_of_scikit_learn(rows: list[tuple[bool, float]]):
    labels, scores = np.array([r[0] for r in rows]), np.array([r[1] for r in rows], np.float32)
    with tf.Graph().as_default(), tf1.Session() as session:
        area = mox.auc(tf.constant(labels), tf.constant(scores))
        batch = session.run(area)
        over = over_rows_of(area).compute(labels, scores)
    if labels.all() or not labels.any():
        assert math.isnan(batch)
        assert math.isnan(over)
    else:
        assert batch == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
        assert over == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_an_evaluation_computes_over_all_rows_what_is_no_mean(tmp_path: Path):
    values = np.array([5, 1, 9, 2, 7], np.float32)

    def input_fn(mode: str, **_: Any) -> Any:
        data = tf.data.Dataset.from_tensor_slices(values)
        return tf1.data.make_one_shot_iterator(data.repeat() if mode == "TRAIN" else data).get_next()

    def model_fn(inputs: Any, mode: str, **_: Any) -> Any:
        (x,) = inputs
        weight = tf1.get_variable("w", [], initializer=tf1.ones_initializer())
        median = mox.over_all_rows(tf.reduce_mean(x), [x * weight], np.median)
        return mox.ModelSpec(loss=tf.square(weight - 1), log_info={"mean": tf.reduce_mean(x), "median": median})

    def run(mode: str, **more: Any) -> Any:
        optimizer = mox.get_optimizer_fn("sgd", learning_rate=0.1)
        return mox.run(
            input_fn=input_fn, model_fn=model_fn, optimizer_fn=optimizer, run_mode=mode, batch_size=2,
            log_dir=str(tmp_path), **more,
        )  # fmt: skip

    run("TRAIN", max_number_of_steps=1)
    metrics = run("EVAL").metrics
    assert metrics == {"mean": pytest.approx(4.8), "median": 5.0}
    with tf.Graph().as_default(), pytest.raises(ModelSpecError, match="a row for each row of the batch"):
        mox.over_all_rows(tf.constant(1.0), [tf.constant(2.0)], np.median)
