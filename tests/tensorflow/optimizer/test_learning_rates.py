"""Learning rates that change with the global step, against NumPy; the strategies' text by properties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxserve.errors import UsageError
from moxserve.learning_rates import Stage, parse_stages, rate_at
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.optimizer.learning_rate_scheduler import linear_cosine_decay, piecewise_lr, polynomial_decay

DOCUMENTED = "5:0.1->0.4,10:0.4=>0.8,15:0.8,20:0.08"


def at_steps(make: Callable[[Any], Any], steps: Any) -> np.ndarray:
    """Evaluate a schedule at some global steps."""
    with tf1.Graph().as_default(), tf1.Session() as session:
        step = tf1.placeholder(tf.int64, [])
        rate = make(step)
        assert (rate.dtype, rate.shape.rank) == (tf.float32, 0)
        return np.array([session.run(rate, {step: int(value)}) for value in steps])


def test_the_documents_strategy() -> None:
    stages = parse_stages(DOCUMENTED)
    assert stages == (
        Stage(0, 5, 0.1, 0.4),
        Stage(5, 10, 0.4, 0.8, exponential=True),
        Stage(10, 15, 0.8, 0.8),
        Stage(15, 20, 0.08, 0.08),
    )
    # 200 rows in batches of 20: ten steps an epoch.
    steps = [0, 25, 49, 50, 75, 99, 100, 149, 150, 199, 200, 10_000]
    expected = [0.1, 0.25, 0.1 + 0.3 * 0.98, 0.4, 0.4 * 2**0.5, 0.4 * 2**0.98, 0.8, 0.8, 0.08, 0.08, 0.08, 0.08]
    got = at_steps(lambda step: piecewise_lr(DOCUMENTED, 200, 20, step), steps)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose([rate_at(stages, step / 10) for step in steps], expected, rtol=1e-12)


def test_steps_an_epoch_need_not_be_a_whole_number() -> None:
    # 7 rows in batches of 2: epoch 1 ends after 3.5 steps, so step 3 is its last one.
    got = at_steps(lambda step: piecewise_lr("1:1,2:2,3:0.5", 7, 2, step), range(12))
    np.testing.assert_allclose(got, [1, 1, 1, 1, 2, 2, 2, 0.5, 0.5, 0.5, 0.5, 0.5])


def test_the_graphs_own_step_is_the_default() -> None:
    with tf1.Graph().as_default(), tf1.Session() as session:
        rate = piecewise_lr("1:0.5,2:0.25", num_samples=10, global_batch_size=10)
        session.run(tf1.global_variables_initializer())
        assert session.run(rate) == 0.5
        session.run(tf1.train.get_or_create_global_step().assign(1))
        assert session.run(rate) == 0.25


numbers = st.floats(1e-6, 1e4).map(lambda value: float(f"{value:.6g}"))


@st.composite
def strategies(draw: Any) -> tuple[str, list[tuple[float, float, str, float]]]:
    """Draw a strategy's text, and what it says."""
    epochs = np.cumsum(draw(st.lists(st.integers(1, 50), min_size=1, max_size=6))) / draw(st.sampled_from([1, 2, 4]))
    blank = st.sampled_from(["", " ", "  "])
    parts, said = [], []
    for epoch in epochs:
        first, arrow, last = draw(numbers), draw(st.sampled_from(["", "->", "=>"])), draw(numbers)
        words = [f"{epoch:g}", ":", repr(first), *([arrow, repr(last)] if arrow else [])]
        parts.append("".join(draw(blank) + word + draw(blank) for word in words))
        said.append((float(epoch), first, arrow, last if arrow else first))
    return ",".join(parts), said


@given(strategies())
def test_any_strategy_says_what_was_meant(drawn: Any) -> None:
    text, said = drawn
    stages = parse_stages(text)
    assert [(s.end, s.first, s.last, s.exponential) for s in stages] == [
        (end, first, last, arrow == "=>") for end, first, arrow, last in said
    ]
    assert [s.start for s in stages] == [0.0, *(s.end for s in stages[:-1])]
    for stage in stages:
        low, high = sorted((stage.first, stage.last))
        middle = rate_at(stages, (stage.start + stage.end) / 2)
        assert rate_at(stages, stage.start) == pytest.approx(stage.first)
        assert low * (1 - 1e-9) <= middle <= high * (1 + 1e-9)
        wanted = (low * high) ** 0.5 if stage.exponential else (low + high) / 2
        assert middle == pytest.approx(wanted)
    assert rate_at(stages, 1e9) == pytest.approx(stages[-1].last)


@given(strategies(), st.data())
def test_a_broken_strategy_is_refused_at_its_place(drawn: Any, data: Any) -> None:
    text, _ = drawn
    place = data.draw(st.integers(0, len(text) - 1))
    broken = text[:place] + "?" + text[place + 1 :]
    with pytest.raises(UsageError, match=r"learning-rate strategy, character (\d+)") as caught:
        parse_stages(broken)
    line, marker = str(caught.value).split("\n")[1:3]
    assert line == f"  {broken}"
    assert 2 <= marker.index("^") <= place + 2  # at the fault, or at the number that it breaks off


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("", 1, "expected an epoch, found the end"),
        ("5:", 3, "expected a learning rate, found the end"),
        ("5:0.1,", 7, "expected an epoch, found the end"),
        ("5", 2, "expected ':', found the end"),
        ("5:0.1;6:1", 6, "expected ',', found ';'"),
        ("5:0.1->x", 8, "expected a learning rate, found 'x'"),
        ("5:0.1,5:1", 7, "the epoch 5 is not after 5"),
        ("5:0.1, 4:1", 8, "the epoch 4 is not after 5"),
        ("0:1", 1, "the epoch 0 is not after 0"),
        ("5:-0.1", 3, "the learning rate -0.1 is not a number from 0 on"),
        ("5:0=>0.1", 3, "an exponential needs rates above 0"),
        ("5:0.1=>0", 8, "an exponential needs rates above 0"),
    ],
)
def test_errors_point_at_the_place(text: str, place: int, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_stages(text)
    assert f"learning-rate strategy, character {place}: {message}" in str(caught.value)


def numpy_schedule(step: np.ndarray, fall: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """0.02 to 2 over 20 of 200 steps, then down until step 180."""
    p = np.clip((step / 200 - 0.1) / 0.8, 0, 1)
    return np.asarray(0.02 + 1.98 * np.where(step < 20, step / 20, fall(p)))


FALLS: dict[str, tuple[Any, Callable[[np.ndarray], np.ndarray]]] = {
    "linear cosine": (linear_cosine_decay, lambda p: (1 - p) * 0.5 * (1 + np.cos(np.pi * p))),
    "polynomial": (polynomial_decay, lambda p: (1 - p) ** 2),
    "line": (lambda *args: polynomial_decay(*args, power=1.0), lambda p: 1 - p),
}


@pytest.mark.parametrize("name", FALLS)
def test_decays(name: str) -> None:
    make, fall = FALLS[name]
    steps = np.arange(0, 230, 7)
    got = at_steps(lambda step: make(2.0, 0.02, step, 200, 0.1, 0.9), steps)
    np.testing.assert_allclose(got, numpy_schedule(steps, fall), rtol=1e-5)
    assert at_steps(lambda step: make(2.0, 0.02, step, 200, 0.0, 1.0), [0])[0] == np.float32(2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 2.0, 0, 10, 0.1, 0.9), "expected max_lr >= min_lr >= 0"),
        ((1.0, 0.1, 0, 0, 0.1, 0.9), "max_step=0, expected"),
        ((1.0, 0.1, 0, 10, 0.9, 0.9), "0 <= warmup_ratio < decay_end_ratio <= 1"),
        ((1.0, 0.1, 0, 10, 0.1, 90), "0 <= warmup_ratio < decay_end_ratio <= 1"),
    ],
)
def test_wrong_numbers(arguments: Any, message: str) -> None:
    for make in (linear_cosine_decay, polynomial_decay):
        with pytest.raises(UsageError, match=message):
            make(*arguments)
    with pytest.raises(UsageError, match="num_samples=0"):
        piecewise_lr("1:1", 0, 10)
