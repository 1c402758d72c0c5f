"""What a measured figure depends on besides the model: the machine, and the runtimes that are installed on it."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

from moxserve.export.facts import Machine
from moxserve.serving.cpus import cpus

__all__ = ["machine"]

# TFLite has an interpreter in each of two packages.
_RUNTIMES = ("tensorflow", "onnxruntime", "openvino", "ai-edge-litert")


def machine() -> Machine:
    """Describe this machine as this process sees it."""
    return Machine(cpu=_cpu(), architecture=platform.machine(), cpus=cpus(), versions=dict(_versions()))


@cache
def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            return next((line.partition(":")[2].strip() for line in f if line.startswith("model name")), "")
    except OSError:
        return platform.processor()


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    return tuple((name, found) for name in _RUNTIMES if (found := _version(name)))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
