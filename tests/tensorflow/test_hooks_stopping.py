"""Hooks that judge a value: when they lower the learning rate and end the training, also across interruptions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import CheckpointError, ModelSpecError
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.phases import Phase

Train = Callable[..., mox.RunResult]
ROWS = 50  # one step takes all, so that it does not matter where the input goes on
NAN = float("nan")


def scripted(kind: type, values: Mapping[int, float] | list[float], **kwargs: Any) -> type:
    """A hook whose evaluation after a global step gives the value of that step, whatever was learnt."""

    class Scripted(kind):  # type: ignore[misc]
        def run_inter(self, n_steps: int = 0) -> dict[str, float]:
            super().run_inter(n_steps)
            return {"accuracy": values[self._host.clock.global_step - 1]}

    return Scripted


@pytest.fixture
def go(train: Train, linear: Any) -> Callable[..., mox.RunResult]:
    """Train the linear problem with one hook that evaluates after every step."""

    def call(
        values: list[float], kind: type = mox.PlateauLREarlyStoppingHook, arguments: Any = None, **run: Any
    ) -> mox.RunResult:
        def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
            spec = linear.model_fn(inputs, mode)
            sizes = {"batch_size": ROWS, "samples_in_train": ROWS, "samples_in_eval": ROWS}
            hook = scripted(kind, values)({"accuracy": spec.losses[0]}, "accuracy", **sizes, **(arguments or {}))
            spec.hooks.append(hook)
            return spec

        defaults = {"batch_size": ROWS, "inter_mode": "EVAL", "max_number_of_steps": 100}
        return train(**{**defaults, "model_fn": model_fn, **run})

    return call


def weights(linear: Any, rates: list[float]) -> np.ndarray:
    w = np.zeros(3)
    for rate in rates:
        w -= rate * linear.gradient(w, 0, ROWS)
    return w


# values of the evaluations, arguments, learning rate of each step
PLATEAUS: dict[str, tuple[list[float], dict[str, Any], list[float]]] = {
    "one after another": ([0.5, 0.5, 0.5, 0.5], {}, [0.1, 0.1, 0.01, 0.001]),
    "better in between": ([0.5, 0.5, 0.5, 0.6, 0.6, 0.6, 0.6], {}, [0.1, 0.1, 0.01, 1e-3, 1e-3, 1e-4, 1e-5]),
    "patience": ([0.5] * 7, {"patience": 2}, [0.1] * 3 + [0.01] * 2 + [0.001] * 2),
    "factor": ([0.5] * 3, {"factor": 0.5, "max_plateaus": 2}, [0.1, 0.1, 0.05]),
    "never lowered": ([0.5] * 2, {"max_plateaus": 1}, [0.1, 0.1]),
    "cooldown": ([0.5] * 6, {"cooldown": 1}, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]),
    "min_lr": ([0.5] * 4, {"min_lr": 0.03}, [0.1, 0.1, 0.03, 0.03]),
    "min_lr above": ([0.5] * 4, {"min_lr": 0.3}, [0.1] * 4),
    "less is better": ([0.9, 0.8, 0.8, 0.8, 0.8], {"mode": "min"}, [0.1, 0.1, 0.1, 0.01, 0.001]),
    "nan": ([0.5, NAN, NAN, NAN], {}, [0.1, 0.1, 0.01, 0.001]),
    "small steps": ([0.5, 0.55, 0.58, 0.59], {"min_delta": 0.1}, [0.1, 0.1, 0.01, 0.001]),
}


@pytest.mark.parametrize("case", PLATEAUS)
def test_a_plateau_lowers_the_learning_rate_and_several_end_the_training(
    case: str, go: Any, linear: Any, tmp_path: Path, variable: Any
) -> None:
    values, arguments, rates = PLATEAUS[case]
    result = go(values, arguments=arguments, log_dir=str(tmp_path))
    assert (result.stop_reason, result.global_step) == ("request_stop", len(values))
    np.testing.assert_allclose(variable(result.checkpoint, "w"), weights(linear, rates), rtol=1e-5)
    assert variable(result.checkpoint, "mox/lr_scale") == pytest.approx(rates[-1] / 0.1)


def test_what_is_printed(go: Any, console: Any) -> None:
    go([0.25, 0.25, 0.25, 0.25], arguments={"factor": 0.5})
    prefix = "INFO:tensorflow:[PlateauLREarlyStopping] "
    assert [line.removeprefix(prefix) for line in console.lines if line.startswith(prefix)] == [
        "step: 0 accuracy: 0.250",
        "step: 1 accuracy: 0.250",
        "accuracy was no better than 0.250 in 1 evaluation(s), plateau 1 of 3: "
        "learning rate lowered to 0.05 (x 0.5 in all)",
        "step: 2 accuracy: 0.250",
        "accuracy was no better than 0.250 in 1 evaluation(s), plateau 2 of 3: "
        "learning rate lowered to 0.025 (x 0.25 in all)",
        "step: 3 accuracy: 0.250",
        "accuracy was no better than 0.250 in 1 evaluation(s), plateau 3 of 3: training ends",
    ]


def test_a_schedule_is_multiplied_too(go: Any, linear: Any, tmp_path: Path, variable: Any) -> None:
    def halved() -> Any:
        step = tf1.train.get_or_create_global_step()
        return tf1.train.GradientDescentOptimizer(tf1.train.exponential_decay(0.1, step, 1, 0.5))

    result = go([0.5] * 4, optimizer_fn=halved, log_dir=str(tmp_path))
    expected = weights(linear, [0.1, 0.05, 0.0025, 0.000125])
    np.testing.assert_allclose(variable(result.checkpoint, "w"), expected, rtol=1e-5)


HOOKS = {
    "plateau": (mox.PlateauLREarlyStoppingHook, {"patience": 2, "cooldown": 1}),
    "early stopping": (mox.EarlyStoppingHook, {"patience": 7}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", HOOKS)
def test_an_interrupted_run_decides_as_one_that_was_not(case: str, go: Any, tmp_path: Path, variable: Any) -> None:
    values = [0.1, 0.5, 0.3, 0.3, 0.2, *[0.5] * 20]
    kind, arguments = HOOKS[case]
    whole = go(values, kind, arguments, log_dir=str(tmp_path / "whole"))
    assert whole.stop_reason == "request_stop"
    for steps in (3, 4, 8, 100):  # in the middle of a wait, of a cool-down
        parts = go(values, kind, arguments, log_dir=str(tmp_path / "parts"), max_number_of_steps=steps)
    assert (parts.stop_reason, parts.global_step) == ("request_stop", whole.global_step)
    for name in ("w", "mox/lr_scale")[: 1 if kind is mox.EarlyStoppingHook else 2]:
        np.testing.assert_array_equal(variable(parts.checkpoint, name), variable(whole.checkpoint, name))


def test_going_back_to_an_older_checkpoint_goes_back_to_what_was_known_then(go: Any, tmp_path: Path) -> None:
    values = [0.5, 0.4, 0.4, 0.4, 0.4, 0.4]
    arguments = {"patience": 4}
    go(values, mox.EarlyStoppingHook, arguments, log_dir=str(tmp_path), save_model_steps=1, max_number_of_steps=4)
    for newer in (3, 4):  # a crash leaves hooks.json newer than the newest checkpoint, too
        for file in tmp_path.glob(f"model.ckpt-{newer}.*"):
            file.unlink()
    result = go(values, mox.EarlyStoppingHook, arguments, log_dir=str(tmp_path))
    assert (result.start_step, result.global_step, result.stop_reason) == (2, 5, "request_stop")
    content = json.loads((tmp_path / "hooks.json").read_text())
    assert content["version"] == 1
    assert [entry["step"] for entry in content["checkpoints"]] == [1, 2, 5]
    assert content["checkpoints"][0]["hooks"] == {
        "Scripted": {"monitor": "accuracy", "more": True, "best": 0.5, "waited": 0}
    }


def test_a_training_that_was_ended_stays_ended(go: Any, tmp_path: Path, console: Any) -> None:
    kind, values = mox.EarlyStoppingHook, [0.5] * 9
    first = go(values, kind, {"patience": 2}, log_dir=str(tmp_path))
    again = go(values, kind, {"patience": 2}, log_dir=str(tmp_path))
    assert (again.stop_reason, again.local_steps, again.global_step) == ("already_trained", 0, 3)
    assert again.checkpoint == first.checkpoint
    assert "Nothing to train: Scripted had ended the training when the checkpoint was written" in console.text
    more = go(values, kind, {"patience": 4}, log_dir=str(tmp_path))
    assert (more.start_step, more.global_step) == (3, 5)


def test_a_hook_begins_anew_where_nothing_is_known_of_it(go: Any, tmp_path: Path, console: Any) -> None:
    values = [0.5] * 9
    go(values, mox.EarlyStoppingHook, {"patience": 9}, log_dir=str(tmp_path), max_number_of_steps=2)
    (tmp_path / "hooks.json").unlink()
    plateau = go(values, arguments={"max_plateaus": 2}, log_dir=str(tmp_path))  # mox/lr_scale is not in the checkpoint
    assert plateau.global_step == 5
    result = go(values, mox.EarlyStoppingHook, {"mode": "min"}, log_dir=str(tmp_path))
    assert result.global_step == 7
    assert "monitors accuracy (min), and did monitor accuracy (max) before: it begins anew" in console.text


@pytest.mark.parametrize("content", ["{", '{"version": 2}', '{"version": 1, "checkpoints": [3]}', "[]"])
def test_a_state_that_cannot_be_read_is_an_error(content: str, go: Any, tmp_path: Path) -> None:
    go([0.5] * 9, log_dir=str(tmp_path), max_number_of_steps=1)
    (tmp_path / "hooks.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"(?s)cannot read .*hooks\.json.*the hooks then begin anew"):
        go([0.5] * 9, log_dir=str(tmp_path))


def test_the_multiplier_of_another_training_is_not_taken_over(
    go: Any, linear: Any, train: Train, tmp_path: Path, variable: Any
) -> None:
    first = go([0.5] * 9, log_dir=str(tmp_path / "first"))
    assert variable(first.checkpoint, "mox/lr_scale") == pytest.approx(0.01)
    second = go([0.5] * 9, log_dir=str(tmp_path / "second"), checkpoint_path=first.checkpoint, max_number_of_steps=5)
    assert variable(second.checkpoint, "mox/lr_scale") == 1.0
    alone = train(log_dir=str(tmp_path / "first"), batch_size=ROWS, max_number_of_steps=5)  # without any hook
    assert alone.global_step == 5


def test_arguments_are_checked(go: Any) -> None:
    for arguments, message in (
        ({"factor": 1.0}, r"factor=1.0\): expected a number between 0 and 1"),
        ({"factor": -1}, "factor=-1"),
        ({"max_plateaus": 0}, "max_plateaus=0"),
        ({"cooldown": -1}, "cooldown=-1"),
        ({"min_lr": -1}, "min_lr=-1"),
        ({"patience": 1.5}, "patience=1.5"),
    ):
        with pytest.raises(ModelSpecError, match=message):
            go([0.5], arguments=arguments)


def test_an_optimizer_without_a_learning_rate_is_refused(go: Any) -> None:
    class Own(tf1.train.Optimizer):
        def __init__(self) -> None:
            super().__init__(False, "own")

    with pytest.raises(ModelSpecError, match=r"needs an optimizer with one; Own has none"):
        go([0.5], optimizer_fn=Own)


def test_each_phase_of_a_training_is_judged_by_itself(train: Train, linear: Any, tmp_path: Path) -> None:
    sizes = {"batch_size": ROWS, "samples_in_train": ROWS, "samples_in_eval": ROWS}

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = linear.model_fn(inputs, mode)
        info = {"accuracy": spec.losses[0] * 0}  # nothing is ever better than the first
        spec.hooks.append(mox.EarlyStoppingHook(info, "accuracy", patience=2, **sizes))
        spec.hooks.append(mox.BestCheckpointHook(info, "accuracy", **sizes))
        return spec

    class Phased:
        """The same model before and after."""

        def phases(self) -> list[Phase]:
            return [Phase(model_fn, 10, "second")]

        def __call__(self, inputs: list[Any], mode: str) -> mox.ModelSpec:
            return model_fn(inputs, mode)

    result = train(model_fn=Phased(), batch_size=ROWS, inter_mode="EVAL", log_dir=str(tmp_path), max_number_of_steps=20)
    assert (result.start_step, result.global_step, result.stop_reason) == (0, 6, "request_stop")
    assert result.best == str(tmp_path / "best/model.ckpt-4")
    assert tf1.train.latest_checkpoint(str(tmp_path / "best-before-second")).endswith("model.ckpt-1")
