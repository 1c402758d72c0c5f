"""What `serving.py` measures beside load: runtimes in process, codecs, start, first request, agreement of variants."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import serving_targets
from serving_models import Store, digits
from serving_targets import CASES, RUNTIMES

if TYPE_CHECKING:
    from serving import Settings

HERE = Path(__file__).resolve().parent
STARTS = 3
LOADS = 5


@dataclass
class InProcess:
    """A runtime in a process of its own (`serving_inprocess.py`); a context manager.

    Args:
        runtime: key of its RUNTIMES.
        path: what it reads.
        inputs: .npy file.
    """

    runtime: str
    path: Path
    inputs: Path
    _process: subprocess.Popen[str] | None = None

    def measure(self, seconds: float, threads: int = 1, batch: int = 1) -> dict[str, float]:
        """Return CPU-ms an item, items a second and the median time of a call."""
        return self._ask({"seconds": seconds, "threads": threads, "batch": batch})

    def answers(self, file: Path) -> np.ndarray:
        """Return what it answers to every input; `file` is for the exchange."""
        self._ask({"save": str(file)})
        return np.load(file)

    def _ask(self, wanted: dict[str, Any]) -> dict[str, float]:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(wanted) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.runtime} in process ended with status {process.wait()}: {self.path}")
        return dict(json.loads(line))

    def __enter__(self) -> InProcess:
        command = [sys.executable, str(HERE / "serving_inprocess.py"), self.runtime, str(self.path), str(self.inputs)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        if self._process.stdout is None or self._process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{self.runtime} in process did not start: {self.path}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        process = self._running()
        if process.stdin is not None:
            process.stdin.close()
        process.wait(60)

    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None, "not started"
        return self._process


# Codecs


def cpu_us(function: Callable[[], object], seconds: float = 0.25, rounds: int = 7) -> float:
    """Return the median CPU microseconds of a call, over rounds."""
    function()
    start = time.perf_counter()
    function()
    count = max(1, int(seconds / rounds / max(time.perf_counter() - start, 1e-7)))
    found = []
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(count):
            function()
        found.append((time.process_time() - start) / count * 1e6)
    return statistics.median(found)


def codecs(_settings: Settings) -> dict[str, float]:
    """Return CPU microseconds of what stands between a socket and a model, for one image `[1, 224, 224, 3] float32`."""
    command = [sys.executable, str(HERE / "serving_codecs.py")]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(result.stdout.splitlines()[-1]))


# Start


def start(settings: Settings) -> dict[str, Any]:
    """Return the time and CPU from start to ready, beside an import of TensorFlow; taking turns, medians."""
    case = CASES["half_plus_two"]
    found: dict[str, list[tuple[float, float]]] = {}
    loaded: dict[str, bool] = {}
    logs = settings.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    broken: set[str] = set()
    for _ in range(STARTS):
        found.setdefault("import tensorflow", []).append(_import_tensorflow())
        for variant in case.variants:
            if variant in broken or not settings.store.built(case.family, variant):
                continue
            process = serving_targets.ours(case, variant, settings.store, logs, settings.flags).process
            process.poll_s = 0.01
            try:
                with process:
                    found.setdefault(f"moxserve, {variant}", []).append((process.start_s, process.start_cpu_s))
                    loaded[variant] = "libtensorflow" in Path(f"/proc/{process.pid}/maps").read_text()
            except RuntimeError as error:
                print(f"{variant}: {error}", file=sys.stderr)
                broken.add(variant)
    medians = {
        name: {"wall_s": statistics.median(w for w, _ in runs), "cpu_s": statistics.median(c for _, c in runs)}
        for name, runs in found.items()
    }
    return {"times": medians, "tensorflow_loaded": loaded}


def _import_tensorflow() -> tuple[float, float]:
    program = "import resource, tensorflow; u = resource.getrusage(0); print(u.ru_utime + u.ru_stime)"
    began = time.monotonic()
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return time.monotonic() - began, float(result.stdout)


# The first request


def first_request(settings: Settings) -> dict[str, Any]:
    """Return the time of the first request after a load, with and without warmup records, as multiples of the p50.

    Over gRPC, one request in flight, the channel connected beforehand; each load is a new server process.
    """
    case, found = CASES["mobilenetv2"], {}
    source = settings.store.version(case.family, "tf")
    store = Store(settings.folder / "first_request")
    target_dir = store.version(case.family, "tf")
    shutil.rmtree(store.root, ignore_errors=True)
    shutil.copytree(source, target_dir)
    payload = serving_targets.tfs_grpc_body(case)(settings.store.inputs(case.family)[0])
    for label in ("without warmup", "with warmup"):
        if label == "with warmup":
            _write_warmup(target_dir, payload)
        runs = [_first_and_steady(settings, store, payload) for _ in range(LOADS)]
        found[label] = {
            "first_ms": statistics.median(first for first, _ in runs),
            "p50_ms": statistics.median(steady for _, steady in runs),
            "ratio": statistics.median(first / steady for first, steady in runs),
        }
    shutil.rmtree(store.root)
    return found


def _write_warmup(version_dir: Path, payload: bytes) -> None:
    from moxserve.protocol import messages
    from moxserve.protocol.tfrecord import write_records

    log = messages.PredictionLog()
    log.predict_log.request.ParseFromString(payload)
    (version_dir / "assets.extra").mkdir()
    write_records(str(version_dir / "assets.extra" / "tf_serving_warmup_requests"), [log.SerializeToString()] * 5)


def _first_and_steady(settings: Settings, store: Store, payload: bytes) -> tuple[float, float]:
    import grpc

    case = CASES["mobilenetv2"]
    target = serving_targets.ours(case, "tf", store, settings.folder / "logs", settings.flags)
    wire = target.wires[0]
    with target.process, grpc.insecure_channel(target.address(wire)) as channel:
        grpc.channel_ready_future(channel).result(20)
        call = channel.unary_unary(wire.method)
        times = []
        for _ in range(60):
            began = time.monotonic()
            call(payload, timeout=60)
            times.append((time.monotonic() - began) * 1e3)
    return times[0], statistics.median(times[20:])


# Agreement


def agreement(settings: Settings) -> list[dict[str, Any]]:
    """Return how often each variant says the same class as float32, on the 797 handwritten digits held out."""
    store, rows = settings.store, []
    scratch = settings.folder / "answers.npy"
    labels = digits(32).test_y
    for family in ("digits_resnet50", "digits_mobilenetv2"):
        expected = store.expected(family)
        reference = expected.reshape(len(labels), -1).argmax(1)
        for variant in CASES["resnet50"].variants:
            stored = serving_targets.stored_variant(variant)
            if not store.built(family, stored):
                continue
            inputs = store.root / f"{family}_inputs.npy"
            with InProcess(RUNTIMES[variant], store.model_file(family, stored), inputs) as runtime:
                answers = runtime.answers(scratch)
            said = answers.reshape(len(labels), -1).argmax(1)
            rows.append(
                {
                    "family": family,
                    "variant": variant,
                    "agreement": float((said == reference).mean()),
                    "accuracy": float((said == labels).mean()),
                    "largest_difference": float(np.abs(answers - expected).max()),
                }
            )
    scratch.unlink()
    return rows


EXTRAS: dict[str, Callable[[Settings], Any]] = {
    "codecs": codecs,
    "start": start,
    "first_request": first_request,
    "agreement": agreement,
}


def families(extras: Sequence[str]) -> list[str]:
    """Return the families of models that some extras need."""
    needed = {
        "start": ["half_plus_two"],
        "first_request": ["mobilenetv2"],
        "agreement": ["digits_resnet50", "digits_mobilenetv2"],
    }
    return [family for name in extras for family in needed.get(name, [])]
