"""`mox.auto`: which parameters short trials choose, on problems whose best ones are known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import ModelSpecError, UsageError
from moxserve.tensorflow.auto.curve import Curve
from moxserve.tensorflow.executor.env import tf, tf1

SPEC = mox.auto.ParamSpec(weight_decay=1e-4, momentum=0.9, learning_rate=0.1)


class Digits:
    """A softmax over four clouds of points; notes what its functions got."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.labels = random.integers(0, 4, 256)
        centres = np.array([[2, 0], [-2, 0], [0, 2], [0, -2]], np.float32)
        self.points = (centres[self.labels] + random.normal(size=(256, 2))).astype(np.float32)
        self.seen: list[mox.auto.ParamSpec] = []

    def input_fn(self, run_mode: str, **kwargs: Any) -> Any:
        assert "param_spec" in kwargs
        rows = tf1.data.Dataset.from_tensor_slices((self.points, self.labels)).repeat()
        return rows.make_one_shot_iterator().get_next()

    def model_fn(self, inputs: list[Any], run_mode: str, **kwargs: Any) -> mox.ModelSpec:
        points, labels = inputs
        w = tf1.get_variable("w", [2, 4], initializer=tf1.zeros_initializer())
        logits = points @ w
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        loss += kwargs["param_spec"].weight_decay * tf.nn.l2_loss(w)
        accuracy = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1), labels), tf.float32))
        return mox.ModelSpec(loss=loss, log_info={"loss": loss, "accuracy": accuracy})

    def optimizer_fn(self, **kwargs: Any) -> Any:
        spec = kwargs["param_spec"]
        self.seen.append(spec)
        return mox.get_optimizer_fn("momentum", learning_rate=spec.learning_rate, momentum=spec.momentum)()

    def search(self, **kwargs: Any) -> Any:
        defaults: dict[str, Any] = {
            "batch_size": 32,
            "auto_batch": True,
            "total_steps": 40,
            "evaluation_total_steps": 4,
            "param_spec": SPEC,
            "log_every_n_steps": 0,
        }
        return mox.auto.search(self.input_fn, self.model_fn, self.optimizer_fn, **{**defaults, **kwargs})


@pytest.mark.slow
def test_the_documents_search_and_the_run_after_it(console: Any, tmp_path: Path) -> None:
    digits = Digits()
    lists = mox.auto.ParamSpec(weight_decay=[1e-2, 1e-4], momentum=[0.9, 0.5])
    found = digits.search(param_list_spec=lists, select_by_eval=False, results_path=str(tmp_path / "trials.json"))
    assert len(found.trials) == 4
    assert 1e-3 < found.learning_rate < 3
    assert found.weight_decay == 1e-2  # makes no difference here, so the largest one wins
    assert found.momentum in (0.9, 0.5)
    assert all(tf1.is_tensor(spec.learning_rate) for spec in digits.seen)
    assert "[auto] trial 4 of 4" in console.text
    assert found.table() in console.text
    rows = json.loads((tmp_path / "trials.json").read_text())
    assert [row["chosen"] for row in rows].count(True) == 1
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)

    result = mox.auto.run(digits.input_fn, model_fn=digits.model_fn, optimizer_fn=digits.optimizer_fn,
                          run_mode=mox.ModeKeys.TRAIN, batch_size=32, max_number_of_steps=40,
                          log_every_n_steps=39, param_spec=found)  # fmt: skip
    assert digits.seen[-1] == found
    assert result.metrics["accuracy"] > 0.75
    assert mox.get_flag("checkpoint_exclude_patterns") == ""


@pytest.mark.slow
def test_it_finds_the_same_again(tmp_path: Path) -> None:
    lists = mox.auto.ParamSpec(momentum=[0.0, 0.3, 0.6, 0.9])
    first, second = (Digits().search(param_list_spec=lists, max_trials=2, seed=5, total_steps=12) for _ in range(2))
    assert first == second
    assert [trial.curve.values for trial in first.trials] == [trial.curve.values for trial in second.trials]
    assert len(first.trials) == 2


@pytest.mark.slow
@pytest.mark.parametrize("by_eval", [False, True])
def test_listed_rates_batch_sizes_and_divergence(by_eval: bool) -> None:
    digits = Digits()
    found = digits.search(
        param_list_spec=mox.auto.ParamSpec(learning_rate=[1e-6, 0.2, 1e30], batch_size=[16]),
        select_by_eval=by_eval, by_acc=False, total_steps=15,
    )  # fmt: skip
    assert (found.learning_rate, found.batch_size) == (0.2, 16)
    scores = [trial.score for trial in found.trials]
    assert scores[1] > scores[0] > scores[2] == -math.inf
    assert (found.trials[2].note, found.trials[0].note) == ("diverged", "")
    assert scores[1] < 0  # a loss counts negative
    assert found.trials[2].steps < 15  # nothing is learned from a loss that is no number


@pytest.mark.slow
def test_an_evaluation_judges_what_the_range_test_found() -> None:
    digits = Digits()
    found = digits.search(select_by_eval=True, total_steps=30, warmup_steps=3, warmup_lr=1e-3, init_learning_rate=0.01)
    (trial,) = found.trials
    assert trial.steps == 60
    assert trial.score > 0.75
    assert isinstance(digits.seen[-1].learning_rate, float)


@pytest.mark.slow
def test_trials_start_from_a_checkpoint_and_leave_it_alone(tmp_path: Path) -> None:
    digits = Digits()
    mox.auto.run(
        digits.input_fn, None, digits.model_fn, digits.optimizer_fn, run_mode=mox.ModeKeys.TRAIN,
        max_number_of_steps=60, log_dir=str(tmp_path), param_spec=SPEC.replace(batch_size=32),
    )  # fmt: skip
    before = sorted(path.name for path in tmp_path.iterdir())
    found = digits.search(total_steps=10, checkpoint_path=str(tmp_path), search_learning_rate=False, window=1)
    assert found.trials[0].steps == 10  # global step 60 of the checkpoint does not count
    assert found.trials[0].curve.values[0] > 0.75
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def curve(values: list[float], **kwargs: Any) -> Curve:
    return Curve(True, kwargs.pop("window", 1), kwargs.pop("max_thres", 3), list(range(len(values))), values)


def test_a_curve_ends_where_it_goes_down_for_good() -> None:
    assert curve([1, 2, 3, 2, 4, 1, 1, 1, 1, 9]).best() == 4
    assert curve([1, 2, 3, 2, 4, 1, 1, 1, 1, 9], max_thres=5).best() == 9
    assert curve([1, 2, math.nan, 9]).best() == 1
    assert curve([math.inf]).best() == curve([math.inf]).edge() == -1
    assert curve([5, 5, 9, 8.9, 9, 8.8, 2, 9, 1, 1, 1, 1, 1, 9]).edge() == 7
    assert curve([]).score() == -math.inf
    assert curve([3, 1], window=2).last() == 2
    noisy = [0, 0, 0, 9, 0, 0, 5, 5, 5, 5] * 3
    assert curve(noisy, window=3, max_thres=99).best() in (7, 8, 17, 18, 27, 28)  # a lonely 9 is noise
    assert Curve(False, 1, 3, [0, 1, 2], [3.0, 1.0, 2.0]).score() == -1.0


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "typo": ({"param_list_spec": mox.auto.ParamSpec(momentums=[1])}, "did you mean 'momentum'"),
    "no list": ({"param_list_spec": mox.auto.ParamSpec(momentum=0.9)}, "momentum must be a list of values"),
    "steps": ({"total_steps": 0}, "expected numbers above 0"),
    "trials": ({"max_trials": 0}, "max_trials=0, expected a number above 0"),
    "window": ({"window": 0}, "window=0, max_thres=10: expected 1 and 0 at least"),
    "range": ({"init_learning_rate": 1.0, "end_learning_rate": 0.1}, "expected 0 < init < end"),
    "no rate": ({"param_spec": mox.auto.ParamSpec(), "search_learning_rate": False}, "nobody gives a learning_rate"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_wrong_arguments(case: str) -> None:
    arguments, message = ERRORS[case]
    with pytest.raises(UsageError, match=message):
        Digits().search(**arguments)


@pytest.mark.slow
def test_what_a_search_cannot_do_is_told() -> None:
    with pytest.raises(ModelSpecError, match=r"log_info\['accurracy'\]; did you mean 'accuracy'"):
        Digits().search(acc_name="accurracy", total_steps=1)
    with pytest.raises(UsageError, match=r"all 1 trials of .* diverged"):
        Digits().search(param_list_spec=mox.auto.ParamSpec(learning_rate=[1e38]), by_acc=False, total_steps=6)
    mox.set_flag("worker_hosts", "a:1,b:1")
    with pytest.raises(UsageError, match="trials run in a single process"):
        Digits().search()


@pytest.mark.slow
def test_hooks_that_evaluate_take_no_part_in_trials() -> None:
    class Stopping(Digits):
        def model_fn(self, inputs: list[Any], run_mode: str, **kwargs: Any) -> mox.ModelSpec:
            spec = super().model_fn(inputs, run_mode, **kwargs)
            spec.hooks.append(mox.EarlyStoppingHook(spec.log_info, "loss", 32, 32, 32))
            return spec

    assert Stopping().search(total_steps=4).trials[0].steps == 4

    class Forgetful(Digits):
        def model_fn(self, inputs: list[Any], run_mode: str, **kwargs: Any) -> Any:
            super().model_fn(inputs, run_mode, **kwargs)

    with pytest.raises(ModelSpecError, match="model_fn"):
        Forgetful().search(total_steps=4)


def test_param_spec() -> None:
    spec = SPEC.replace(depth=3)
    assert (spec.depth, "depth" in spec, "depth" in SPEC, list(spec)[-1]) == (3, True, False, "depth")
    assert spec == mox.auto.ParamSpec(**spec.as_dict())
    assert len({spec, spec.replace()}) == 1
    assert "momentum=0.9" in repr(spec)
    with pytest.raises(AttributeError, match="did you mean 'momentum'"):
        _ = spec.momentun
    with pytest.raises(AttributeError, match="replace"):
        spec.momentum = 1
