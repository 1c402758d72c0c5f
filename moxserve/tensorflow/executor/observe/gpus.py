"""How busy GPUs are, through nvidia-ml. Without the library, a driver or a GPU nothing is read, and nothing paid."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["GpuMeter", "GpuReading", "GpuUse"]


@dataclass(frozen=True)
class GpuReading:
    """One GPU at one time.

    Attributes:
        index: as TensorFlow numbers it.
        busy: share of the last moments (up to a second) in which a kernel ran, 0 to 1.
        memory_bytes: in use by all processes.
        total_bytes: memory that there is.
    """

    index: int
    busy: float
    memory_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class GpuUse:
    """One GPU during a run.

    Attributes:
        index: as TensorFlow numbers it.
        name: of the model.
        busy: mean share of time in which a kernel ran, 0 to 1.
        memory_bytes: most that was in use by all processes.
        total_bytes: memory that there is.
    """

    index: int
    name: str
    busy: float
    memory_bytes: int
    total_bytes: int

    def facts(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


class GpuMeter:
    """Reads GPUs.

    Args:
        nvml: the module `pynvml`, initialised.
        handles: nvidia-ml's handle of each GPU, in TensorFlow's order.
    """

    def __init__(self, nvml: Any, handles: Sequence[Any]) -> None:
        self._nvml = nvml
        self._handles = list(handles)
        self._readings: list[list[GpuReading]] = []

    @classmethod
    def open(cls, count: int) -> GpuMeter | None:
        """Find the first `count` GPUs that this process may use; None when there is none to be read."""
        try:
            pynvml: Any = importlib.import_module("pynvml")  # of nvidia-ml-py, which has no types
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            handles = _visible(pynvml, os.environ.get("CUDA_VISIBLE_DEVICES"))[:count]
        except pynvml.NVMLError:
            return None
        return cls(pynvml, handles) if handles else None

    def read(self) -> list[GpuReading]:
        """Read all GPUs now, and remember it; a GPU that does not answer is left out."""
        found = []
        for index, handle in enumerate(self._handles):
            try:
                busy = self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
            except self._nvml.NVMLError:
                continue
            found.append(GpuReading(index, busy, int(memory.used), int(memory.total)))
        self._readings.append(found)
        return found

    @property
    def last(self) -> list[GpuReading]:
        """The last readings."""
        return self._readings[-1] if self._readings else []

    def use(self) -> tuple[GpuUse, ...]:
        """Put all readings together."""
        found = []
        for index, handle in enumerate(self._handles):
            own = [reading for readings in self._readings for reading in readings if reading.index == index]
            if own:
                busy = sum(reading.busy for reading in own) / len(own)
                most = max(reading.memory_bytes for reading in own)
                found.append(GpuUse(index, self._name(handle), busy, most, own[-1].total_bytes))
        return tuple(found)

    def _name(self, handle: Any) -> str:
        name = self._nvml.nvmlDeviceGetName(handle)
        return name.decode() if isinstance(name, bytes) else str(name)


def _visible(nvml: Any, chosen: str | None) -> list[Any]:
    """The handles of the GPUs that CUDA shows to this process, in its order."""
    if chosen is None:
        return [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    handles = []
    for name in (word.strip() for word in chosen.split(",")):
        if name.isdecimal():
            handles.append(nvml.nvmlDeviceGetHandleByIndex(int(name)))
        elif name.startswith(("GPU-", "MIG-")):
            handles.append(nvml.nvmlDeviceGetHandleByUUID(name))
        else:  # CUDA ends the list at the first name that it does not know, such as -1
            break
    return handles
