"""The forms of what runs print: JSON lines and quiet ones, by the flag; errors as events."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

import moxserve.tensorflow as mox
from moxserve import talk
from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf1

Train = Callable[..., mox.RunResult]


@pytest.fixture
def events(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[dict[str, Any]]]:
    """Read what standard output got, one JSON object a line."""
    return lambda: [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_lines(train: Train, events: Any, console: Any, tmp_path: Any, linear: Any) -> None:
    mox.set_flag("log_format", "json")
    result = train(log_dir=str(tmp_path), max_number_of_steps=25)
    assert console.lines == []
    found = events()
    assert all(datetime.fromisoformat(event["time"].replace("Z", "+00:00")).tzinfo for event in found)
    steps = [event for event in found if event["event"] == "step"]
    assert [(e["step"], e["global_step"]) for e in steps] == [(0, 0), (10, 10), (20, 20)]
    assert all(e["samples_per_s"] > 0 and set(e["values"]) == {"loss", "mean"} for e in steps)
    assert {"event": "log", "level": "info", "message": f"Saving checkpoints for 25 into {tmp_path}"}.items() <= next(
        event for event in found if event["event"] == "log"
    ).items()
    last = found[-1]
    assert (last["event"], last["mode"], last["global_step"], last["stop_reason"]) == (
        "result",
        "TRAIN",
        25,
        "max_steps",
    )
    assert last["metrics"] == pytest.approx(dict(result.metrics))
    assert last["utilisation"]["cores"] >= 1
    assert last["checkpoint"] == result.checkpoint
    train(log_dir=str(tmp_path), run_mode=mox.ModeKeys.EVAL, input_fn=linear.finite_input_fn, max_number_of_steps=0)
    evaluation = next(event for event in events() if event["event"] == "evaluation")
    assert (evaluation["steps"], evaluation["global_step"]) == (5, 25)
    assert set(evaluation["values"]) == {"loss", "mean"}
    mox.set_flag("log_format", "text")
    train()
    assert events() == []
    assert "sample/sec" in console.text


def test_errors_are_events(train: Train, events: Any) -> None:
    mox.set_flag("log_format", "json")
    with pytest.raises(UsageError):
        train(batch_size=0)
    (error,) = events()
    assert error["event"] == "error"
    assert (error["type"], error["exit_code"]) == ("UsageError", 2)
    assert error["message"] == "batch_size=0: expected at least 1"

    def broken(mode: str, **kwargs: Any) -> Any:
        raise ZeroDivisionError("in input_fn")

    with pytest.raises(ZeroDivisionError):
        train(input_fn=broken)
    (error,) = events()
    assert (error["type"], error["message"], error["exit_code"]) == ("ZeroDivisionError", "in input_fn", 1)


def test_values_that_json_has_not(events: Any) -> None:
    import numpy as np

    with talk.talking("json", worker=3):
        talk.tell({"event": "x", "nan": float("nan"), "array": np.float32(0.5), "other": ValueError("v")})
    (event,) = events()
    assert {**event, "time": None} == {
        "event": "x", "time": None, "worker": 3, "nan": None, "array": 0.5, "other": "v"
    }  # fmt: skip


def test_quiet(train: Train, console: Any) -> None:
    level = tf1.logging.get_verbosity()
    mox.set_flag("log_format", "quiet")
    mox.set_flag("progress_secs", 0.001)

    def warns(step: int) -> bool:
        if step == 2:
            tf1.logging.warning("take care")
        return True

    train(fetch_strategy_fn=warns)
    assert console.lines == ["WARNING:tensorflow:take care"]
    assert tf1.logging.get_verbosity() == level


def test_who_started_the_process_may_choose(train: Train, events: Any, console: Any) -> None:
    with talk.talking("json"):
        train()
    assert [event["event"] for event in events()][-2:] == ["used", "result"]
    with talk.talking("quiet"):
        train()
        mox.set_flag("log_format", "text")  # a script that says how it wants to talk is heard
        assert console.lines == []
        train()
    assert "sample/sec" in console.text


def test_wrong_form() -> None:
    with pytest.raises(UsageError, match="flag --log_format: 'xml' is not one of "):
        mox.set_flag("log_format", "xml")
