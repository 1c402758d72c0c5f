"""What runs use: figures of the result, summaries, the line at the end; GPUs through a stand-in of nvidia-ml."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.dataflow import DataFromGenerator
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.observe.gpus import GpuMeter, GpuUse
from moxserve.tensorflow.executor.observe.utilisation import Utilisation

Train = Callable[..., mox.RunResult]


def summaries(folder: Path, prefix: str = "mox/") -> dict[int, dict[str, float]]:
    """Scalars by step and tag."""
    found: dict[int, dict[str, float]] = {}
    for path in folder.glob("events*"):
        for event in tf1.train.summary_iterator(str(path)):
            values = {v.tag: v.simple_value for v in event.summary.value if v.tag.startswith(prefix)}
            if values:
                found.setdefault(event.step, {}).update(values)
    return found


def test_result_summaries_and_line(train: Train, console: Any, tmp_path: Path) -> None:
    result = train(log_dir=str(tmp_path), max_number_of_steps=40, save_summary_steps=10)
    used = result.utilisation
    assert isinstance(used, Utilisation)
    assert used.cores >= 1
    assert used.busy_cores == pytest.approx(result.step_cpu_s / result.step_s)
    assert 50e6 < used.memory_bytes <= used.peak_memory_bytes
    assert used.input_wait is not None
    assert 0 <= used.input_wait <= 1
    assert used.gpus == ()
    (line,) = [line for line in console.lines if "used: " in line]
    assert line == f"INFO:tensorflow:{used.event()}"
    assert line.endswith("% of the time waiting for input")
    written = summaries(tmp_path)
    assert sorted(written) == [11, 21, 31]  # after the steps of the other summaries; the first is left out
    for values in written.values():
        assert sorted(values) == [
            "mox/cpu_percent", "mox/input_wait_percent", "mox/memory_mb", "mox/samples_per_s", "mox/steps_per_s"
        ]  # fmt: skip
        assert values["mox/samples_per_s"] == pytest.approx(10 * values["mox/steps_per_s"])
        assert 0 <= values["mox/input_wait_percent"] <= 100


def slow_rows(wait_s: float) -> Iterator[list[Any]]:
    while True:
        time.sleep(wait_s)
        yield [np.ones(3, np.float32), np.float32(1)]


def slow_dataset(mode: str, **kwargs: Any) -> Any:
    return tf1.data.Dataset.from_generator(lambda: map(tuple, slow_rows(0.004)), (tf1.float32, tf1.float32), ((3,), ()))


def slow_flow(mode: str, **kwargs: Any) -> Any:
    return DataFromGenerator(lambda: slow_rows(0.004))


@pytest.mark.slow
@pytest.mark.parametrize("input_fn", [slow_dataset, slow_flow])
def test_waiting_for_slow_input(train: Train, input_fn: Any) -> None:
    used = train(input_fn=input_fn, max_number_of_steps=16, log_every_n_steps=3).utilisation
    assert used is not None
    assert used.input_wait is not None
    assert used.input_wait > 0.1  # 40 ms of waiting a step, and hardly one of computing, if nobody else wants the CPU


def test_fast_input_is_not_waited_for(train: Train, linear: Any) -> None:
    def model_fn(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
        spec: mox.ModelSpec = linear.model_fn(inputs, mode)
        slow = tf1.py_func(lambda loss: (time.sleep(0.02), loss)[1], [spec.loss], tf1.float32)
        return mox.ModelSpec(loss=spec.loss + 0 * tf1.stop_gradient(slow), log_info=spec.log_info)

    used = train(model_fn=model_fn, max_number_of_steps=20, log_every_n_steps=5).utilisation
    assert used is not None
    assert used.input_wait is not None
    assert used.input_wait < 0.9  # what waits for 20 ms a step is the model


def test_a_single_step_tells_nothing(train: Train) -> None:
    assert train(max_number_of_steps=1).utilisation is None


class FakeNvml(SimpleNamespace):
    """Two GPUs, as the module `pynvml` shows them."""

    class NVMLError(Exception):
        """What the library raises."""

    UUIDS = ("GPU-aaa", "GPU-bbb")

    def nvmlInit(self) -> None:
        if self.broken:
            raise self.NVMLError("no driver")

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        if uuid not in self.UUIDS:
            raise self.NVMLError("not found")
        return self.UUIDS.index(uuid)

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return f"Model {handle}".encode()

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        if self.silent == handle:
            raise self.NVMLError("lost")
        self.reads += 1
        return SimpleNamespace(gpu=(40, 80)[handle] + self.reads)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(used=(handle + 1) * 1_000_000_000 + self.reads, total=80_000_000_000)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml(broken=False, silent=None, reads=0)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def test_gpus(nvml: FakeNvml) -> None:
    meter = GpuMeter.open(2)
    assert meter is not None
    meter.read()
    meter.read()
    assert meter.use() == (
        GpuUse(0, "Model 0", pytest.approx(0.42), 1_000_000_003, 80_000_000_000),
        GpuUse(1, "Model 1", pytest.approx(0.83), 2_000_000_004, 80_000_000_000),
    )
    nvml.silent = 1
    assert [reading.index for reading in meter.read()] == [0]
    nvml.broken = True
    assert GpuMeter.open(2) is None


@pytest.mark.parametrize(
    ("visible", "names"),
    [("1", ["Model 1"]), ("1,0", ["Model 1", "Model 0"]), ("GPU-bbb", ["Model 1"]), ("0,-1,1", ["Model 0"])],
)
def test_gpus_in_cudas_order(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    meter = GpuMeter.open(8)
    assert meter is not None
    meter.read()
    assert [use.name for use in meter.use()] == names


@pytest.mark.parametrize("visible", ["-1", "", "GPU-ccc"])
def test_gpus_that_are_hidden(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert GpuMeter.open(8) is None


def test_a_run_with_gpus(train: Train, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: ["GPU:0"])
    result = train(log_dir=str(tmp_path), max_number_of_steps=30, save_summary_steps=10)
    assert result.utilisation is not None
    (gpu,) = result.utilisation.gpus  # as many as the run has devices
    assert (gpu.name, gpu.total_bytes) == ("Model 0", 80_000_000_000)
    assert "GPU 0 4" in result.utilisation.event()
    for values in summaries(tmp_path, "mox/gpu").values():
        assert 40 < values["mox/gpu0_percent"] < 50
        assert values["mox/gpu0_memory_mb"] == pytest.approx(1000, rel=1e-3)
