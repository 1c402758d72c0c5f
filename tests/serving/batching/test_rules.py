"""The rules of BatchingParameters, with the codes and texts of tensorflow_model_server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from moxserve.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from moxserve.serving.batching import BatchingParameters, BatchThreads
from moxserve.serving.batching.execute import Executor
from moxserve.serving.batching.queues import BatchQueue
from moxserve.serving.batching.scheduler import Task
from moxserve.serving.execution import RequestContext
from moxserve.serving.execution.admission import ServiceTimes

Play = Callable[[Any], Any]


def rows(*values: float) -> np.ndarray:
    return np.float32(values)


def y(answer: Any) -> list[float]:
    assert isinstance(answer, dict), answer
    return answer["y"].tolist()


def test_requests_that_wait_are_run_together(stage: Any, play: Play) -> None:
    one = stage(max_batch_size=10)
    answers = play(one.meet(one.ask(rows(1, 2)), one.ask(rows(3)), one.ask(rows(4, 5, 6))))
    assert [y(a) for a in answers] == [[2, 4], [6], [8, 10, 12]]
    assert one.backend.sizes == [1, 6]
    assert all(name.startswith("batch") for name in one.backend.threads)


def test_one_that_does_not_fit_opens_another_batch(stage: Any, play: Play) -> None:
    one = stage(max_batch_size=4)
    answers = play(one.meet(*[one.ask(np.full(n, n, np.float32)) for n in (2, 1, 2, 2, 1)]))
    assert [len(y(a)) for a in answers] == [2, 1, 2, 2, 1]
    # A later small one does not slip into a batch that was closed before.
    assert one.backend.sizes == [1, 3, 4, 1]


def test_a_task_larger_than_the_largest_batch_is_refused(stage: Any, play: Play) -> None:
    one = stage(max_batch_size=3)
    with pytest.raises(InvalidArgument, match=r"^Task size 4 is larger than maximum input batch size 3$"):
        play(one.ask(rows(1, 2, 3, 4)))
    assert one.backend.runs == []


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"a": np.float32(1), "b": rows(1)}, "Batching Run() input tensors must have at least one dimension"),
        ({"a": rows(1, 2), "b": rows(1)}, "Batching Run() input tensors must have equal 0th-dimension size"),
    ],
)
def test_what_has_no_rows_is_refused(inputs: Any, text: str, stage: Any, make_backend: Any, play: Play) -> None:
    backend = make_backend(
        lambda i: {"y": i["a"] + i["b"]}, {n: ("float32", None) for n in "ab"}, {"y": ("float32", None)}
    )
    with pytest.raises(InvalidArgument) as caught:
        play(stage(backend=backend).ask(inputs))
    assert caught.value.message == text


def test_a_signature_without_inputs_is_refused(stage: Any, make_backend: Any, play: Play) -> None:
    backend = make_backend(lambda _: {"y": rows(1)}, {}, {"y": ("float32", (1,))})
    with pytest.raises(InvalidArgument, match=r"^Batching Run\(\) must have at least one input tensor$"):
        play(stage(backend=backend).ask({}))


def test_a_full_queue_refuses_at_once(stage: Any, play: Play) -> None:
    one = stage(max_batch_size=2, max_enqueued_batches=2)
    answers = play(one.meet(*[one.ask(rows(i, i)) for i in range(3)], one.ask(rows(9))))
    assert [y(a) for a in answers[:2]] == [[0, 0], [2, 2]]
    for refused in answers[2:]:
        assert isinstance(refused, Unavailable)
        assert refused.message == (
            "The batch scheduling queue to which this task was submitted is full; currently 2 batches enqueued and "
            "max_enqueued_batches is 2"
        )
    assert one.backend.sizes == [1, 2, 2]


def test_the_open_batch_takes_what_fits_while_the_queue_is_full(stage: Any, play: Play) -> None:
    one = stage(max_batch_size=2, max_enqueued_batches=1)
    answers = play(one.meet(one.ask(rows(1)), one.ask(rows(2, 2)), one.ask(rows(3))))
    assert y(answers[0]) == [2]
    assert isinstance(answers[1], Unavailable)
    assert y(answers[2]) == [6]


def test_an_unfilled_batch_waits_for_company(stage: Any, play: Play) -> None:
    one = stage(max_batch_size=3, batch_timeout_micros=1_000_000)

    async def scenario() -> float:
        began = time.monotonic()
        answers = await asyncio.gather(one.ask(rows(1)), one.ask(rows(2)))
        assert [y(a) for a in answers] == [[2], [4]]
        return time.monotonic() - began

    assert play(scenario()) >= 1.0
    assert one.backend.sizes == [2]


def test_a_full_batch_does_not_wait(stage: Any, play: Play) -> None:
    one = stage(max_batch_size=3, batch_timeout_micros=3_600_000_000)
    answers = play(_gather(one.ask(rows(1, 2)), one.ask(rows(3))))
    assert [y(a) for a in answers] == [[2, 4], [6]]
    assert one.backend.sizes == [3]


def test_a_closed_batch_does_not_wait(stage: Any, play: Play) -> None:
    one = stage(max_batch_size=3, batch_timeout_micros=3_600_000_000)

    async def scenario() -> None:
        first = asyncio.ensure_future(one.ask(rows(1, 2)))
        second = asyncio.ensure_future(one.ask(rows(3, 4)))
        assert y(await first) == [2, 4]
        one.runner.close()  # a queue that closes lets go what waits
        assert y(await second) == [6, 8]
        with pytest.raises(Unavailable):
            await one.ask(rows(1))

    play(scenario())


async def _gather(*requests: Any) -> list[Any]:
    return await asyncio.gather(*requests)


def test_outputs_that_are_asked_for_make_a_queue(stage: Any, play: Play) -> None:
    one = stage()
    answers = play(
        one.meet(
            one.ask(rows(1), outputs=["y"]), one.ask(rows(2), outputs=["z"]), one.ask(rows(3), outputs=["y"]),
            one.ask(rows(4)), one.ask(rows(5), outputs=["z", "y"]),
        )
    )  # fmt: skip
    assert [sorted(a) for a in answers] == [["y"], ["z"], ["y"], ["y", "z"], ["y", "z"]]
    # The plug asked for both, so its queue is the first in turn again.
    assert sorted(one.backend.sizes[1:]) == [1, 2, 2]
    assert {run[2]: len(run[1]["x"]) for run in one.backend.runs[1:]} == {("y",): 2, ("z",): 1, ("y", "z"): 2}


def test_signatures_over_the_same_tensors_meet(stage: Any, backend: Any, play: Play) -> None:
    from moxserve.serving.backends.calls import CallSignature
    from moxserve.types import Signature

    s = backend.signatures["s"]
    other = Signature("other", "", {"input": s.inputs["x"]}, {"twice": s.outputs["y"], "after": s.outputs["z"]})
    backend.calls["other"] = CallSignature(other)
    one = stage()
    answers = play(one.meet(one.ask(rows(1)), one.ask({"input": rows(2)}, signature="other")))
    assert y(answers[0]) == [2]
    assert answers[1]["twice"].tolist() == [4]
    assert answers[1]["after"].tolist() == [3]
    assert one.backend.sizes == [1, 2]


def test_queues_take_turns(stage: Any, play: Play) -> None:
    one = stage(max_batch_size=1)

    async def scenario() -> None:
        heavy = [one.ask(rows(i), outputs=["y"]) for i in range(4)]
        light = [one.ask(rows(i), outputs=["z"]) for i in range(2)]
        await one.meet(*heavy, *light)

    play(scenario())
    assert [run[2] for run in one.backend.runs[1:]] == [("y",), ("z",), ("y",), ("z",), ("y",), ("y",)]


def test_padding_copies_the_first_row_of_the_last_task(stage: Any, play: Play) -> None:
    one = stage(max_batch_size=8, allowed_batch_sizes=(1, 4, 8))
    answers = play(one.meet(one.ask(rows(1)), one.ask(rows(2, 3))))
    assert [y(a) for a in answers] == [[2], [4, 6]]
    assert one.backend.runs[1][1]["x"].tolist() == [1, 2, 3, 2]
    pages = one.metrics.page().decode()
    assert 'padding_size_sum{execution_batch_size="4"} 1.0' in pages
    assert 'padding_size_sum{execution_batch_size="1"} 0.0' in pages


def test_one_request_alone_is_padded_too(stage: Any, play: Play) -> None:
    one = stage(max_batch_size=4, allowed_batch_sizes=(4,))
    assert y(play(one.ask(rows(5, 6)))) == [10, 12]
    assert one.backend.runs[0][1]["x"].tolist() == [5, 6, 5, 5]


def test_arrays_of_one_request_are_not_copied(stage: Any, play: Play) -> None:
    one, x = stage(), rows(1, 2)
    play(one.ask(x))
    assert one.backend.runs[0][1]["x"] is x


def test_answers_are_views(stage: Any, play: Play) -> None:
    one = stage()
    first, second = play(one.meet(one.ask(rows(1)), one.ask(rows(2))))
    assert first["y"].base is not None
    assert first["y"].base is second["y"].base


def test_unequal_lengths_are_filled_up(stage: Any, make_backend: Any, play: Play) -> None:
    shapes = {"x": ("float32", (None, None, None))}
    backend = make_backend(lambda i: {"y": i["x"]}, shapes, {"y": ("float32", (None, None, None))})
    one = stage(backend=backend, pad_variable_length_inputs=True, max_batch_size=4, allowed_batch_sizes=(4,))
    a = np.arange(1, 5, dtype=np.float32).reshape(1, 2, 2)
    b = np.arange(11, 17, dtype=np.float32).reshape(2, 1, 3)

    async def scenario() -> Any:
        plug = await one.busy(np.full((1, 1, 1), -1, np.float32))
        tasks = [asyncio.ensure_future(one.ask(array)) for array in (a, b)]
        await asyncio.sleep(0)
        backend.release()
        await plug
        return await asyncio.gather(*tasks)

    first, second = play(scenario())
    assert first["y"].tolist() == [[[1, 2, 1], [3, 4, 1]]]
    assert second["y"].tolist() == [[[11, 12, 13], [11] * 3], [[14, 15, 16], [11] * 3]]
    assert backend.runs[1][1]["x"].shape == (4, 2, 3)
    assert backend.runs[1][1]["x"][3].tolist() == [[11, 12, 13], [11] * 3]


def _identity(make_backend: Any, dtype: str = "float32") -> Any:
    return make_backend(lambda i: {"y": i["x"]}, {"x": (dtype, None)}, {"y": (dtype, None)})


def test_what_cannot_be_put_together_is_run_apart(stage: Any, make_backend: Any, play: Play) -> None:
    """tensorflow_model_server fails the whole batch; here nobody is harmed by what another one sent."""
    one = stage(backend=_identity(make_backend))
    arrays = [
        np.ones((1, 2), np.float32), np.ones((1, 3), np.float32), np.ones((2, 2), np.float32), np.ones(1, np.float64),
        np.array([b"text"], object), np.ones((0, 2), np.float32),
    ]  # fmt: skip
    answers = play(one.meet(*[one.ask(array) for array in arrays]))
    for array, answer in zip(arrays, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], array)
        assert answer["y"].dtype == array.dtype
    assert one.backend.sizes == [1, 3, 1, 1, 1, 0]


def test_what_cannot_be_filled_up_is_run_apart(stage: Any, make_backend: Any, play: Play) -> None:
    one = stage(backend=_identity(make_backend), pad_variable_length_inputs=True)
    arrays = [
        np.ones((1, 2), np.float32),
        np.ones((1, 0), np.float32),
        np.ones(1, np.float32),
        np.ones((1, 3), np.float32),
    ]
    answers = play(one.meet(*[one.ask(array) for array in arrays]))
    assert [a["y"].shape for a in answers] == [(1, 3), (1, 0), (1,), (1, 3)]


def test_strings_go_together(stage: Any, make_backend: Any, play: Play) -> None:
    backend = _identity(make_backend, "string")
    one = stage(backend=backend, max_batch_size=8, allowed_batch_sizes=(8,))
    texts = [np.array([b"a", b"long\x00\xff\x00"], object), np.array([b""], object)]

    async def scenario() -> Any:
        plug = await one.busy(np.array([b"plug"], object))
        tasks = [asyncio.ensure_future(one.ask(text)) for text in texts]
        await asyncio.sleep(0)
        backend.release()
        await plug
        return await asyncio.gather(*tasks)

    assert [a["y"].tolist() for a in play(scenario())] == [[b"a", b"long\x00\xff\x00"], [b""]]
    assert backend.sizes == [8, 8]


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(
    ("output", "text"),
    [
        (lambda x: np.float32(x.sum()), "Batched output tensor has 0 dimensions"),
        (
            lambda x: x[:1].repeat(7),
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
            "tensors",
        ),
    ],
)
def test_outputs_without_rows_are_an_error(
    output: Any, text: str, alone: bool, stage: Any, make_backend: Any, play: Play
) -> None:
    backend = make_backend(lambda i: {"y": output(i["x"])}, {"x": ("float32", (None,))}, {"y": ("float32", ())})
    one = stage(backend=backend)

    async def scenario() -> list[Any]:
        backend.hold()
        count = 1 if alone else 3
        tasks = [asyncio.ensure_future(one.ask(rows(1, 2))) for _ in range(count)]
        await one.entered()
        backend.release()
        return await asyncio.gather(*tasks, return_exceptions=True)

    for error in play(scenario()):
        assert isinstance(error, FailedPrecondition)
        assert error.message == text


# Splitting


def test_a_large_request_is_split(stage: Any, play: Play) -> None:
    one = stage(max_batch_size=10, enable_large_batch_splitting=True, max_execution_batch_size=4)
    answers = play(one.meet(one.ask(rows(1, 2, 3)), one.ask(np.arange(9, dtype=np.float32)), one.ask(rows(7))))
    assert [y(a) for a in answers] == [[2, 4, 6], [2.0 * i for i in range(9)], [14]]
    assert one.backend.sizes == [1, 4, 4, 4, 1]


def test_splitting_needs_room(stage: Any, play: Play) -> None:
    one = stage(
        max_batch_size=20, enable_large_batch_splitting=True, max_execution_batch_size=4, max_enqueued_batches=2
    )
    answers = play(one.meet(one.ask(rows(1, 2)), one.ask(np.zeros(7, np.float32)), one.ask(np.zeros(6, np.float32))))
    assert y(answers[0]) == [2, 4]
    assert isinstance(answers[1], Unavailable)
    assert answers[1].message.startswith(
        "The batch scheduling queue to which this task was submitted is full; task size is 7 but scheduling "
        "capacity is only 6"
    )
    assert y(answers[2]) == [0] * 6
    with pytest.raises(InvalidArgument, match="Task size 21 is larger than maximum input batch size 20"):
        play(one.ask(np.zeros(21, np.float32)))


def test_a_part_that_fails_fails_the_whole(stage: Any, backend: Any, play: Play) -> None:
    def picky(inputs: Any) -> Any:
        if (inputs["x"] == 13).any():
            raise InvalidArgument("thirteen")
        return {"y": inputs["x"], "z": inputs["x"]}

    backend.function = picky
    one = stage(max_batch_size=100, enable_large_batch_splitting=True, max_execution_batch_size=4)
    answers = play(one.meet(one.ask(np.arange(30, dtype=np.float32)), one.ask(rows(5))))
    assert isinstance(answers[0], InvalidArgument)
    assert y(answers[1]) == [5]
    # What was left of the failed one did not run any more.
    assert max(run[1]["x"].max() for run in backend.runs) <= 15


def test_parts_of_different_lengths_are_an_error_not_a_dead_thread(stage: Any, make_backend: Any, play: Play) -> None:
    one = stage(
        backend=_identity(make_backend), pad_variable_length_inputs=True, max_batch_size=4,
        enable_large_batch_splitting=True, max_execution_batch_size=2,
    )  # fmt: skip

    async def scenario() -> Any:
        plug = await one.busy(np.zeros((1, 1), np.float32))
        long, split = np.ones((1, 5), np.float32), np.ones((3, 2), np.float32)
        tasks = [asyncio.ensure_future(one.ask(array)) for array in (long, split)]
        await asyncio.sleep(0)
        one.backend.release()
        await plug
        return await asyncio.gather(*tasks, return_exceptions=True)

    long, split = play(scenario())
    assert long["y"].shape == (1, 5)
    assert isinstance(split, FailedPrecondition)
    assert "pad_variable_length_inputs and enable_large_batch_splitting do not go together" in split.message
    assert play(one.ask(np.ones((1, 2), np.float32)))["y"].shape == (1, 2)


# Failures


def test_one_bad_request_does_not_fail_the_others(stage: Any, backend: Any, play: Play) -> None:
    def picky(inputs: Any) -> Any:
        if (inputs["x"] < -1).any():
            raise InvalidArgument("negative")
        return {"y": inputs["x"] * 2, "z": inputs["x"]}

    backend.function = picky
    one = stage()
    answers = play(one.meet(*[one.ask(rows(-5 if i == 11 else i)) for i in range(16)]))
    assert isinstance(answers.pop(11), InvalidArgument)
    assert [y(a) for a in answers] == [[2.0 * i] for i in range(16) if i != 11]
    # Halves of halves: 16 -> 8 8 -> 4 4 -> 2 2 -> 1 1.
    assert len(backend.runs) == 1 + 1 + 2 * 4


def test_a_failure_that_no_request_causes_is_not_repeated(stage: Any, backend: Any, play: Play) -> None:
    def broken(inputs: Any) -> Any:
        if len(inputs["x"]) > 1:
            raise Unavailable("the device is gone")
        return {"y": inputs["x"], "z": inputs["x"]}

    backend.function = broken
    one = stage()
    answers = play(one.meet(*[one.ask(rows(i)) for i in range(8)]))
    assert all(isinstance(a, Unavailable) for a in answers)
    assert len(backend.runs) == 2


def test_a_bug_in_a_backend_reaches_the_callers(stage: Any, backend: Any, play: Play) -> None:
    def buggy(inputs: Any) -> Any:
        if len(inputs["x"]) > 1:
            raise ZeroDivisionError("oops")
        return {"y": inputs["x"], "z": inputs["x"]}

    backend.function = buggy
    one = stage()
    answers = play(one.meet(one.ask(rows(1)), one.ask(rows(2))))
    assert [type(a) for a in answers] == [ZeroDivisionError] * 2
    assert y(play(one.ask(rows(1)))) == [1]  # the thread lives on


# Who does not wait any more


def test_cancelled_requests_are_not_run_and_make_room(stage: Any, play: Play) -> None:
    one = stage(max_batch_size=2, max_enqueued_batches=1)

    async def scenario() -> None:
        plug = await one.busy()
        waiting = [asyncio.ensure_future(one.ask(rows(i))) for i in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await one.ask(rows(3))
        waiting[0].cancel()
        await asyncio.sleep(0)
        third = asyncio.ensure_future(one.ask(rows(3)))
        await asyncio.sleep(0)
        one.backend.release()
        await plug
        assert y(await waiting[1]) == [4]
        assert y(await third) == [6]
        assert waiting[0].cancelled()

    play(scenario())
    assert [run[1]["x"].tolist() for run in one.backend.runs] == [[-1], [2, 3]]


def test_all_cancelled_means_no_run(stage: Any, play: Play) -> None:
    one = stage()

    async def scenario() -> None:
        plug = await one.busy()
        waiting = [asyncio.ensure_future(one.ask(rows(i))) for i in (1, 2)]
        await asyncio.sleep(0)
        for request in waiting:
            request.cancel()
        await asyncio.sleep(0)
        one.backend.release()
        await plug
        assert y(await one.ask(rows(9))) == [18]

    play(scenario())
    assert one.backend.sizes == [1, 1]


def test_a_rest_client_that_left_is_not_run(stage: Any, play: Play) -> None:
    one = stage()

    async def scenario() -> None:
        plug = await one.busy()
        left = asyncio.Event()
        waiting = asyncio.ensure_future(one.ask(rows(5), context=RequestContext(gone=left.wait)))
        await asyncio.sleep(0.01)
        left.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        one.backend.release()
        await plug

    play(scenario())
    assert one.backend.sizes == [1]


def test_a_deadline_is_kept_while_waiting(stage: Any, play: Play) -> None:
    one = stage()

    async def scenario() -> None:
        plug = await one.busy()
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await one.ask(rows(5), context=RequestContext(deadline=began + 0.1))
        with pytest.raises(DeadlineExceeded):
            await one.ask(rows(5), context=RequestContext(deadline=began))
        one.backend.release()
        await plug

    play(scenario())
    assert one.backend.sizes == [1]


@pytest.mark.parametrize(("deadlines", "kind"), [((0.0, 0.0), ResourceExhausted), ((0.0, 1e12), DeadlineExceeded)])
def test_expired_tasks_are_dropped(deadlines: Any, kind: type[Exception]) -> None:
    """By the scheduler itself, should a worker be there before the clock of the event loop."""
    finished: list[Task] = []
    ran: list[int] = []

    def model(arrays: Any) -> Any:
        ran.append(len(arrays[0]))
        return arrays

    times = ServiceTimes()
    parameters = BatchingParameters(batch_timeout_micros=3_600_000_000)  # closing lets go what waits, together
    threads = BatchThreads(1)
    queue = BatchQueue(parameters, Executor("m", model, finished.extend, parameters, times), times)
    for deadline in deadlines:
        threads.submit(queue, Task([rows(1)], 1, deadline))
    threads.close()
    assert len(finished) == 2
    expired = [task for task in finished if task.error is not None]
    assert [type(task.error) for task in expired] == [kind] * deadlines.count(0.0)
    if kind is ResourceExhausted:
        assert str(expired[0].error) == "Run() timeout exceeded while waiting in batching queue"
    assert ran == [1] * (len(deadlines) - len(expired))


# Metrics


def test_batches_are_counted(stage: Any, play: Play) -> None:
    one = stage(max_batch_size=8, allowed_batch_sizes=(4, 8))
    play(one.meet(one.ask(rows(1, 2)), one.ask(rows(3))))
    page = one.metrics.page().decode()
    name = ":tensorflow:serving:batching_session:"
    for line in (
        f"{name}wrapped_run_count{{}} 2",
        f"{name}processed_batch_size_sum{{}} 8.0",
        f"{name}processed_batch_size_count{{}} 2",
        f"{name}input_batch_size_count{{}} 3",
        f"{name}input_batch_size_sum{{}} 4.0",
        f'{name}padding_size_sum{{execution_batch_size="4"}} 4.0',
        f'{name}queuing_latency_count{{thread_pool_name=""}} 3',
    ):
        assert line in page.splitlines()
    assert f'{name}queuing_latency_bucket{{thread_pool_name="",le="120"}}' in page
    assert f'{name}processed_batch_size_bucket{{le="8192"}} 2' in page
