"""Whatever comes in, in whatever order: each request gets back exactly its own rows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moxserve.errors import FailedPrecondition, InvalidArgument, Unavailable
from moxserve.serving.batching import BatchingParameters

DTYPES = ("float32", "int64", "object", "bool")

request = st.tuples(
    st.integers(0, 9),  # rows
    st.sampled_from([(), (2,), (3,), (2, 2), (0,)]),  # the other dimensions
    st.sampled_from(DTYPES),
    st.sampled_from([None, ["y"], ["z"], ["z", "y"]]),
    st.booleans(),  # cancelled at once
)


@st.composite
def parameters(draw: Any) -> BatchingParameters | None:
    if draw(st.booleans()):
        return None
    largest = draw(st.integers(1, 12))
    sizes = sorted(draw(st.sets(st.integers(1, largest), max_size=3)) | {largest}) if draw(st.booleans()) else ()
    return BatchingParameters(
        max_batch_size=largest,
        batch_timeout_micros=draw(st.sampled_from([0, 0, 500])),
        max_enqueued_batches=draw(st.sampled_from([1, 3, 1000])),
        num_batch_threads=draw(st.integers(1, 3)),
        allowed_batch_sizes=tuple(sizes),
        pad_variable_length_inputs=draw(st.booleans()),
        enable_large_batch_splitting=draw(st.booleans()),
        max_execution_batch_size=draw(st.integers(0, largest)),
    )


def values(seed: int, rows: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    numbers = np.random.default_rng(seed).integers(0, 1000, (rows, *shape))
    if dtype != "object":
        return numbers.astype(dtype)
    texts = np.empty(numbers.size, object)
    texts[:] = [b"%d\0" % n for n in numbers.ravel()]
    return texts.reshape(numbers.shape)


def answer(inputs: Any) -> dict[str, np.ndarray]:
    x = inputs["x"]
    return {"y": x, "z": x + x}


@pytest.mark.slow
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(chosen=parameters(), requests=st.lists(request, min_size=1, max_size=12))
def test_each_gets_its_own_rows(
    chosen: BatchingParameters | None, requests: list[Any], make_stage: Any, make_backend: Any
) -> None:
    backend = make_backend(
        answer, {"x": ("float32", (None,))}, {"y": ("float32", (None,)), "z": ("float32", (None,))}
    )  # fmt: skip
    stage = make_stage(backend, chosen, threads=chosen.num_batch_threads if chosen else 2)
    arrays = [values(i, rows, shape, dtype) for i, (rows, shape, dtype, _, _) in enumerate(requests)]

    async def scenario() -> list[Any]:
        backend.hold()
        tasks = [
            asyncio.ensure_future(stage.ask(array, outputs=wanted))
            for array, (*_, wanted, _) in zip(arrays, requests, strict=True)
        ]
        await asyncio.sleep(0)
        for task, (*_, cancelled) in zip(tasks, requests, strict=True):
            if cancelled:
                task.cancel()
        backend.release()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 120)

    try:
        answers = asyncio.run(scenario())
    finally:
        stage.close()
    for array, found, (rows, _, _, wanted, cancelled) in zip(arrays, answers, requests, strict=True):
        if isinstance(found, Unavailable):
            assert chosen is not None
            assert chosen.max_enqueued_batches < 1000
        elif isinstance(found, InvalidArgument):
            assert chosen is not None
            assert rows > chosen.max_batch_size
        elif isinstance(found, FailedPrecondition):
            assert chosen is not None
            assert chosen.pad_variable_length_inputs
            assert chosen.enable_large_batch_splitting
        elif isinstance(found, asyncio.CancelledError):
            assert cancelled
        else:
            check(array, found, wanted, padded=chosen is not None and chosen.pad_variable_length_inputs)


def check(array: np.ndarray, found: Any, wanted: list[str] | None, *, padded: bool) -> None:
    assert sorted(found) == sorted(wanted or ["y", "z"])
    for name, expected in answer({"x": array}).items():
        if name not in found:
            continue
        came = found[name]
        assert came.dtype == expected.dtype
        assert came.ndim == expected.ndim
        assert len(came) == len(expected)
        if padded:
            came = came[tuple(map(slice, expected.shape))]
        np.testing.assert_array_equal(came, expected)
        assert came.shape == expected.shape


def test_the_model_of_this_test_is_not_the_runner_itself(make_backend: Callable[..., Any], make_stage: Any) -> None:
    """A backend that mixes rows up is caught by `check`."""
    backend = make_backend(
        lambda i: {"y": i["x"][::-1]}, {"x": ("float32", (None,))}, {"y": ("float32", (None,))}
    )  # fmt: skip
    stage = make_stage(backend, BatchingParameters())
    try:
        first, second = asyncio.run(stage.meet(stage.ask(np.float32([1])), stage.ask(np.float32([2]))))
    finally:
        stage.close()
    assert (first["y"].tolist(), second["y"].tolist()) == ([2], [1])
