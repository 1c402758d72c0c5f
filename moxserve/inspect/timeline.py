"""Step timelines in Chrome's trace format: what costs how much. Needs no TensorFlow.

The file is what `chrome://tracing` and Perfetto show: `{"traceEvents": [...]}`. Events of phase `M` named
`process_name` name the rows: `/job:localhost/replica:0/task:0/device:CPU:0 Compute` is what a device computed, other
rows are tensors and allocators. An event of phase `X` in such a row is one operation that ran: `name` is its type, `ts`
and `dur` are microseconds, `args` has its `name` in the graph and its type as `op`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moxserve import file
from moxserve.errors import DataError, UsageError, did_you_mean
from moxserve.inspect.report import Report, Table, columns

__all__ = ["GROUPS", "Cost", "Event", "costs", "events_of", "read_trace", "report_of", "wall_ms"]

GROUPS = ("type", "operation", "device")
_FIGURES = "calls:count time_ms:figure percent:figure"
_HEADINGS = {
    "type": f"type:long device {_FIGURES}",
    "operation": f"operation:long type device {_FIGURES}",
    "device": f"device:long {_FIGURES}",
}
_COMPUTE = " Compute"
_ALL_STREAMS = "/stream:all"
_DEVICE = re.compile(
    r"^(?:/job:(?P<job>\w+))?(?:/replica:\d+)?(?:/task:(?P<task>\d+))?/(?:device:)?(?P<device>[A-Za-z_]+:\d+)(?P<rest>.*)$"
)


@dataclass(frozen=True, slots=True)
class Event:
    """One operation that ran.

    Attributes:
        operation: its name in the graph.
        type: such as MatMul.
        device: such as `CPU:0`, `GPU:0` (its kernels), `GPU:0 launch` (the time that the host took to start them),
            `GPU:0 copies`; with its process before it where that is one of a cluster: `worker 1 CPU:0`.
        start_us: microseconds since any point.
        duration_us: microseconds.
    """

    operation: str
    type: str
    device: str
    start_us: float
    duration_us: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What operations of one kind cost together.

    Attributes:
        name: type, name in the graph, or device, by what they were grouped.
        type: of the operation; empty where several types were put together.
        device: where; comma-separated where several.
        calls: how often they ran.
        time_ms: milliseconds, summed over all calls, also of those that ran at the same time.
        share: of the sum of everything, 0 to 1.
    """

    name: str
    type: str
    device: str
    calls: int
    time_ms: float
    share: float


def device_name(row: str) -> str:
    """Shorten TensorFlow's name of a device to what tells it apart."""
    match = _DEVICE.match(row.removesuffix(_COMPUTE))
    if match is None:
        return row.removesuffix(_COMPUTE)
    job, device, rest = match["job"], match["device"], match["rest"]
    process = "" if job in (None, "localhost") else f"{job} {match['task'] or 0} "
    return f"{process}{device}{rest}"


def events_of(trace: Mapping[str, Any]) -> list[Event]:
    """Read the operations that ran out of a trace.

    Raises:
        DataError: it is none.
    """
    try:
        events = trace["traceEvents"]
        rows = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "process_name"}
        devices = {pid: device_name(name) for pid, name in rows.items() if name.endswith(_COMPUTE)}
        found = [_event(e, devices[e["pid"]]) for e in events if e["ph"] == "X" and e["pid"] in devices]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"no Chrome trace of TensorFlow: {type(error).__name__}: {error}",
            hint="give a file of LOG_DIR/timeline, which --timeline_steps writes",
        ) from error
    return _kernels_and_launches(found)


def _event(event: Mapping[str, Any], device: str) -> Event:
    args = event.get("args", {})
    return Event(
        str(args.get("name", event["name"])),
        str(event["name"]),
        device,
        float(event["ts"]),
        float(event.get("dur", 0)),
    )


def _kernels_and_launches(events: list[Event]) -> list[Event]:
    """Tell a GPU's own time from the time that the host took to start its work.

    TensorFlow has kernels in the row `GPU:0/stream:all`, once more in a row of each stream, and what only starts them
    in the row of the GPU itself; copies are in `GPU:0/memcpy` and in rows of streams.
    """
    traced = {e.device.partition("/")[0] for e in events if e.device.endswith(_ALL_STREAMS)}
    if not traced:
        return events
    found = []
    for event in events:
        device, _, row = event.device.partition("/")
        if row.startswith("stream:") and not event.device.endswith(_ALL_STREAMS):
            continue
        if row:
            device += " copies" if row == "memcpy" else ""
        elif device.rpartition(" ")[2] in traced:
            device += " launch"
        found.append(replace(event, device=device))
    return found


def wall_ms(events: Sequence[Event]) -> float:
    """Milliseconds from the first operation's start to the last one's end."""
    if not events:
        return 0.0
    return (max(e.start_us + e.duration_us for e in events) - min(e.start_us for e in events)) / 1000


def costs(events: Sequence[Event], by: str = "type") -> list[Cost]:
    """Add up what operations cost, dearest first.

    Args:
        events: of one step.
        by: `type` (and device), `operation` (a node of the graph) or `device`.

    Raises:
        UsageError: `by` is none of these.
    """
    if by not in GROUPS:
        raise UsageError(f"costs by {by!r}; {did_you_mean(by, GROUPS)}")
    groups: dict[tuple[str, str], list[Event]] = {}
    for event in events:
        name = {"type": event.type, "operation": event.operation, "device": event.device}[by]
        groups.setdefault((name, event.device), []).append(event)
    total = sum(e.duration_us for e in events) or 1.0
    found = [_cost(name, device, group, total) for (name, device), group in groups.items()]
    return sorted(found, key=lambda cost: (-cost.time_ms, cost.name, cost.device))


def _cost(name: str, device: str, group: Sequence[Event], total_us: float) -> Cost:
    time_us = sum(e.duration_us for e in group)
    types = {e.type for e in group}
    return Cost(name, types.pop() if len(types) == 1 else "", device, len(group), time_us / 1000, time_us / total_us)


def read_trace(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a trace file.

    Raises:
        DataError: there is no such file, or it is no JSON object.
    """
    name = os.fspath(path)
    try:
        with file.File(name, "rb") as f:
            found = json.loads(f.read())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read a trace from {name!r}: {error}") from error
    if isinstance(found, list):  # the other form that Chrome takes
        found = {"traceEvents": found}
    if not isinstance(found, dict):
        raise DataError(f"{name!r} holds no Chrome trace; it is a JSON {type(found).__name__}")
    return found


def report_of(path: str | os.PathLike[str], by: str = "type", top: int = 20) -> Report:
    """Tell what is in a trace file.

    Args:
        path: the file.
        by: as for `costs`.
        top: how many rows; 0 for all.

    Raises:
        DataError: it is no trace.
        UsageError: `by` is unknown.
    """
    events = events_of(read_trace(path))
    found = costs(events, by)
    report = Report(os.fspath(path), "timeline")
    report.facts = {
        "operations": len(events),
        "wall_ms": round(wall_ms(events), 3),
        "sum_ms": round(sum(e.duration_us for e in events) / 1000, 3),
    }
    shown = found[:top] if top else found
    heading, rows = _HEADINGS[by], [_row(by, cost) for cost in shown]
    total = len(found) if len(shown) < len(found) else None
    report.tables.append(Table("costs", columns(heading), rows, title=f"time by {by}", total=total))
    return report


def _row(by: str, cost: Cost) -> tuple[Any, ...]:
    names = {"type": (cost.name, cost.device), "operation": (cost.name, cost.type, cost.device)}.get(by, (cost.name,))
    return (*names, cost.calls, round(cost.time_ms, 3), round(100 * cost.share, 2))
