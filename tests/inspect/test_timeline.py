"""What costs how much in Chrome traces, without TensorFlow; the command that tells it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moxserve.errors import DataError, UsageError
from moxserve.inspect.timeline import Cost, costs, events_of, read_trace, report_of, wall_ms

# As TensorFlow writes it: kernels in the row of all streams and in that of their own, their launches in the GPU's.
ROWS = {
    1: "/job:worker/replica:0/task:1/device:CPU:0",
    2: "/job:worker/replica:0/task:1/device:GPU:0",
    3: "/device:GPU:0/stream:all",
    4: "/device:GPU:0/stream:13",
    5: "/device:GPU:0/memcpy",
    6: "/device:GPU:0/stream:14<MemcpyH2D>",
}
RAN = [
    (1, "IteratorGetNext", "next", 0, 100),
    (2, "Conv2D", "conv1", 100, 10),
    (2, "Conv2D", "conv2", 110, 10),
    (3, "Conv2D", "conv1", 110, 300),
    (3, "Conv2D", "conv2", 410, 100),
    (4, "Conv2D", "conv1", 110, 300),
    (4, "Conv2D", "conv2", 410, 100),
    (5, "unknown", "MEMCPYHtoD", 90, 80),
    (6, "unknown", "MEMCPYHtoD", 90, 80),
]


def trace() -> dict[str, Any]:
    names = [
        {"ph": "M", "name": "process_name", "pid": 10 * pid + n, "args": {"name": f"{row} {kind}"}}
        for pid, row in ROWS.items()
        for n, kind in enumerate(("Compute", "Tensors"))
    ]
    ran = [
        {"ph": "X", "cat": "Op", "name": kind, "pid": 10 * pid, "tid": 0, "ts": ts, "dur": dur,
         "args": {"name": name, "op": kind}}
        for pid, kind, name, ts, dur in RAN
    ]  # fmt: skip
    tensor = {"ph": "X", "name": "not an operation", "pid": 11, "tid": 0, "ts": 0, "dur": 10_000, "args": {}}
    return {"traceEvents": [*names, tensor, *ran]}


def test_kernels_count_once_and_launches_apart() -> None:
    events = events_of(trace())
    assert wall_ms(events) == 0.51
    assert costs(events) == [
        Cost("Conv2D", "Conv2D", "GPU:0", 2, 0.4, pytest.approx(400 / 600)),
        Cost("IteratorGetNext", "IteratorGetNext", "worker 1 CPU:0", 1, 0.1, pytest.approx(100 / 600)),
        Cost("unknown", "unknown", "GPU:0 copies", 1, 0.08, pytest.approx(80 / 600)),
        Cost("Conv2D", "Conv2D", "worker 1 GPU:0 launch", 2, 0.02, pytest.approx(20 / 600)),
    ]
    assert [(c.name, c.time_ms) for c in costs(events, "device")] == [
        ("GPU:0", 0.4), ("worker 1 CPU:0", 0.1), ("GPU:0 copies", 0.08), ("worker 1 GPU:0 launch", 0.02)
    ]  # fmt: skip
    assert [c.name for c in costs(events, "operation")] == ["conv1", "conv2", "next", "MEMCPYHtoD", "conv1", "conv2"]
    with pytest.raises(UsageError, match="costs by 'name'; "):
        costs(events, "name")


def test_an_empty_trace_has_no_costs(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text("[]")
    assert costs(events_of(read_trace(path))) == []
    assert report_of(path).facts == {"operations": 0, "wall_ms": 0.0, "sum_ms": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read a trace from"),
        ("3", "holds no Chrome trace; it is a JSON int"),
        ('{"a": 1}', "no Chrome trace of TensorFlow: KeyError: 'traceEvents'"),
        ('{"traceEvents": [3]}', "no Chrome trace of TensorFlow: TypeError"),
    ],
)
def test_other_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        report_of(path)


def test_command(run_moxserve: Any, tmp_path: Path) -> None:
    path = tmp_path / "timeline-100.json"
    path.write_text(json.dumps(trace()))
    done = run_moxserve("inspect", "timeline", path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1:4] == ["  operations  6", "  wall ms     0.51", "  sum ms      0.6"]
    assert lines[5].split() == ["time", "by", "type", "(4)"]
    assert lines[6].split() == ["TYPE", "DEVICE", "CALLS", "TIME", "MS", "PERCENT"]
    assert lines[7].split() == ["Conv2D", "GPU:0", "2", "0.4", "66.67"]
    facts = json.loads(run_moxserve("inspect", "timeline", path, "--by", "operation", "--json").stdout)
    assert facts["costs"][0] == {
        "operation": "conv1", "type": "Conv2D", "device": "GPU:0", "calls": 1, "time_ms": 0.3, "percent": 50.0
    }  # fmt: skip
    assert run_moxserve("inspect", "timeline", tmp_path / "none.json").returncode == 1
