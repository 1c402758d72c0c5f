"""The process that makes the load: `python -m moxserve_loadtests.generator JOB`, started by `moxserve loadtest`.

JOB is a folder with `job.pickle` in; `result.json` and `report.html` come out. Progress goes to stdout, a JSON object a
line. A process of its own, because locust's patching of the standard library must not reach anything else, and so that
its CPU time is the generator's alone.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from moxserve_loadtests.users import user_for  # isort: skip - patches the standard library: first

import gevent
from gevent.event import Event
from locust.env import Environment
from locust.html import get_html_report
from locust.util.date import format_utc_timestamp

from moxserve_loadtests.plan import Plan
from moxserve_loadtests.results import Latencies, LoadResult

__all__ = ["Job", "main", "run"]

_PROGRESS_S = 0.5
_POINTS = 120
_LAG_S = 0.02


@dataclass(frozen=True)
class Job:
    """What the generator is told.

    Attributes:
        plan: payloads and where they go.
        users: concurrent users.
        spawn_rate: users started a second.
        duration_s: length of the measurement, from the moment when all users are there.
    """

    plan: Plan
    users: int
    spawn_rate: float
    duration_s: float


class _Recorder:
    """Counts requests while it is open."""

    def __init__(self) -> None:
        self.open = False
        self.latencies = Latencies()
        self.slice = Latencies()
        self.slice_errors = 0
        self.lags = Latencies()
        self.errors: Counter[str] = Counter()

    def on_request(self, response_time: float, exception: BaseException | None, **_: Any) -> None:
        if not self.open:
            return
        if exception is None:
            self.latencies.add(response_time)
            self.slice.add(response_time)
        else:
            self.errors[str(exception)] += 1
            self.slice_errors += 1

    def history_point(self, seconds: float, users: int) -> dict[str, Any]:
        """Return a point of the report's charts, for the time since the last one.

        locust's own points average over twelve seconds and leave out the last two, so a short test would show nothing.
        """
        now = format_utc_timestamp(time.time())
        done, failed, self.slice, self.slice_errors = self.slice, self.slice_errors, Latencies(), 0
        values = {
            "response_time_percentile_0.5": round(done.percentile(50) or 0, 2),
            "response_time_percentile_0.95": round(done.percentile(95) or 0, 2),
            "current_rps": round((done.count + failed) / seconds, 1),
            "current_fail_per_sec": round(failed / seconds, 1),
            "total_avg_response_time": round(self.latencies.avg_ms or 0, 2),
            "user_count": users,
        }
        return {**{name: [now, value] for name, value in values.items()}, "time": now}

    def watch_lag(self) -> None:
        """Sleep for a known time again and again; waking late means that the loop has too much to do."""
        while True:
            start = time.perf_counter()
            gevent.sleep(_LAG_S)
            if self.open:
                self.lags.add(max(0.0, (time.perf_counter() - start - _LAG_S) * 1e3))


def run(job: Job) -> tuple[LoadResult, str]:
    """Make the load and return the figures and locust's HTML page."""
    environment = Environment(user_classes=[user_for(job.plan)], host=job.plan.target)
    runner = environment.create_local_runner()
    environment.locustfile = "moxserve loadtest"
    recorder, spawned = _Recorder(), Event()
    environment.events.request.add_listener(recorder.on_request)
    environment.events.spawning_complete.add_listener(lambda **_: spawned.set())
    gevent.spawn(recorder.watch_lag)
    runner.start(job.users, spawn_rate=job.spawn_rate)
    spawned.wait()
    runner.stats.reset_all()
    recorder.open = True
    start, cpu = time.perf_counter(), time.process_time()
    _measure(recorder, runner, start, job.duration_s)
    recorder.open = False
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    page = get_html_report(environment, show_download_link=False)
    runner.quit()
    plan = job.plan
    result = LoadResult(plan.target, plan.model, job.users, plan.rows, plan.source)
    result.measured(recorder.latencies, recorder.errors, seconds)
    result.generator_used(cpu_s, seconds, recorder.lags)
    return result, page


def _measure(recorder: _Recorder, runner: Any, start: float, duration_s: float) -> None:
    point_s, last = max(1.0, duration_s / _POINTS), start
    while (left := start + duration_s - time.perf_counter()) > 0:
        gevent.sleep(min(left, _PROGRESS_S))
        now = time.perf_counter()
        if now - last >= point_s or now >= start + duration_s:
            runner.stats.history.append(recorder.history_point(now - last, runner.user_count))
            last = now
        done = {
            "seconds": time.perf_counter() - start,
            "requests": recorder.latencies.count,
            "failures": sum(recorder.errors.values()),
            "p95_ms": recorder.latencies.percentile(95),
        }
        sys.stdout.write(json.dumps(done) + "\n")
        sys.stdout.flush()


def main(folder: str) -> None:
    """Run the job of a folder and leave its results there."""
    with open(os.path.join(folder, "job.pickle"), "rb") as f:
        job = Job(**pickle.load(f))
    result, page = run(job)
    with open(os.path.join(folder, "report.html"), "w", encoding="utf-8") as f:
        f.write(page)
    with open(os.path.join(folder, "result.json"), "w", encoding="utf-8") as f:
        json.dump(result.as_dict(), f)


if __name__ == "__main__":
    main(sys.argv[1])
