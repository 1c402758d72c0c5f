from __future__ import annotations

import numpy as np

from moxserve.serving.execution.quickness import Quickness, payload_bytes


def known(seconds: float, runs: int = 10, size: int = 8, *, on_loop: bool = False) -> Quickness:
    quickness = Quickness()
    for _ in range(runs):
        quickness.note(size, seconds, on_loop=on_loop)
    return quickness


def test_the_first_runs_are_on_threads() -> None:
    quickness = Quickness()
    for _ in range(4):
        assert not quickness.suits(8)
        quickness.note(8, 20e-6, on_loop=False)
    assert quickness.suits(8)


def test_a_slow_model_stays_on_threads() -> None:
    assert not known(0.01).suits(8)
    assert not known(300e-6).suits(8)


def test_a_large_request_for_a_quick_model_goes_to_a_thread() -> None:
    quickness = known(20e-6)
    assert quickness.suits(16)
    assert not quickness.suits(1_000_000)
    for _ in range(4):
        quickness.note(1_000_000, 100e-6, on_loop=False)
    assert quickness.suits(1_000_000)


def test_what_a_busy_interpreter_adds_does_not_hide_a_quick_model() -> None:
    """Threads wait for the interpreter's lock, five milliseconds at a time; now and then one does not."""
    quickness = Quickness()
    for i in range(100):
        quickness.note(8, 30e-6 if i % 10 == 0 else 0.006, on_loop=False)
    assert quickness.suits(8)


def test_a_slow_first_run_is_forgotten() -> None:
    quickness = known(2.0, 1)
    for _ in range(20):
        quickness.note(8, 30e-6, on_loop=False)
    assert quickness.suits(8)


def test_a_pause_sends_the_next_runs_to_threads_and_repeated_ones_more() -> None:
    quickness = known(20e-6)
    for expected in (8, 16, 32, 32):
        quickness.note(8, 0.006, on_loop=True)
        runs = 0
        while not quickness.suits(8):
            quickness.note(8, 20e-6, on_loop=False)
            runs += 1
        assert runs == expected
    for _ in range(100):
        quickness.note(8, 20e-6, on_loop=True)
    quickness.note(8, 0.006, on_loop=True)
    runs = 0
    while not quickness.suits(8):
        quickness.note(8, 20e-6, on_loop=False)
        runs += 1
    assert runs == 8


def test_a_model_that_became_slower_leaves_the_loop() -> None:
    quickness = known(20e-6)
    for _ in range(30):
        quickness.note(8, 0.001, on_loop=True)
    assert not quickness.suits(8)


def test_strings_count_by_their_lengths() -> None:
    assert payload_bytes([np.zeros((2, 3), np.float32), np.array([b"abc", b"", b"12345"], object)]) == 24 + 8
    assert payload_bytes([]) == 0
