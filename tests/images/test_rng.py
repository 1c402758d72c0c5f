"""Streams of random numbers by seed."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from moxserve.images.rng import RowRandom


def test_a_seed_gives_the_same_stream_in_every_thread_and_form():
    random = RowRandom()
    expected = random((3, 1, 4)).random(5).tolist()
    random((3, 1, 5)).integers(0, 10, 3)  # leaves half of a block of numbers unused
    assert random([3, 1, 4]).random(5).tolist() == expected
    assert random(np.array([3, 1, 4])).random(5).tolist() == expected
    found = []
    thread = threading.Thread(target=lambda: found.append(random((3, 1, 4)).random(5).tolist()))
    thread.start()
    thread.join()
    assert found == [expected]
    assert random(7).random() == random((7,)).random() == random(np.int64(7)).random()


@pytest.mark.slow
def test_streams_differ_and_are_uniform():
    random = RowRandom()
    seeds = [(seed, row) for seed in range(2) for row in range(2000)] + [(1, 23, 4), (12, 34), (9, 234), (123, 4)]
    firsts = np.array([random(seed).random(2) for seed in seeds])
    assert len(np.unique(firsts[:, 0])) == len(seeds)
    assert abs(firsts.mean() - 0.5) < 0.02
    counts, _ = np.histogram(firsts[:, 0], 10, (0, 1))
    assert counts.min() > 0.8 * len(seeds) / 10
    # Neighbours know nothing of each other.
    assert abs(np.corrcoef(firsts[:-1, 0], firsts[1:, 0])[0, 1]) < 0.06
    assert abs(np.corrcoef(firsts[:, 0], firsts[:, 1])[0, 1]) < 0.06
