from __future__ import annotations

import math
import time

import pytest

from moxserve.errors import Unavailable
from moxserve.serving.execution.admission import Admission, ServiceTimes


def test_nothing_is_known_at_first() -> None:
    times = ServiceTimes()
    assert times.run_s(1) == 0.0
    assert math.isnan(times.unit_s(8))


def test_runs_of_one_size_are_averaged() -> None:
    times = ServiceTimes()
    for _ in range(50):
        times.record(4, 0.008)
    assert times.unit_s(5) == pytest.approx(0.002)
    assert times.run_s(4) == pytest.approx(0.008)
    assert times.run_s(0) == pytest.approx(0.002)


def test_other_sizes_are_guessed_from_the_nearest() -> None:
    times = ServiceTimes()
    times.record(1, 0.010)
    times.record(64, 0.064)
    assert times.run_s(2) == pytest.approx(0.020)
    assert times.run_s(128) == pytest.approx(0.128)
    assert times.run_s(32) == pytest.approx(0.032)


def test_a_slow_first_run_is_forgotten_soon() -> None:
    times = ServiceTimes()
    times.record(1, 2.0)
    for _ in range(10):
        times.record(1, 0.010)
    assert times.run_s(1) < 0.015


def test_one_pause_changes_little() -> None:
    times = ServiceTimes()
    for _ in range(20):
        times.record(1, 0.010)
    times.record(1, 0.060)
    assert times.run_s(1) <= 0.021


def test_a_change_for_the_worse_is_learned() -> None:
    times = ServiceTimes()
    times.record(1, 0.010)
    for _ in range(20):
        times.record(1, 0.1)
    assert times.run_s(1) > 0.09


def test_huge_sizes_are_fine() -> None:
    times = ServiceTimes()
    times.record(1 << 80, 1.0)
    assert times.run_s(1 << 80) == pytest.approx(1.0)


def test_zero_lets_everything_in() -> None:
    Admission().check(1e9, time.monotonic() - 1)


def test_what_need_not_wait_is_let_in() -> None:
    Admission(0.001).check(0.0, time.monotonic() - 1)


def test_limits() -> None:
    admission = Admission(0.1)
    admission.check(0.099)
    admission.check(0.099, time.monotonic() + 1)
    with pytest.raises(Unavailable, match="would wait about 101 ms"):
        admission.check(0.101)
    with pytest.raises(Unavailable, match="its deadline is in"):
        admission.check(0.099, time.monotonic() + 0.05)
