"""Data flows: iterables of datapoints that are read, mapped, augmented, batched and prefetched in Python, with
tensorpack's names. No TensorFlow.

`base` has the rules, `seeds` the random numbers, `order` the order of rows. Names resolve on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

# One line a module; its names.
_MODULES = {
    "base": (
        "DataFlow",
        "DataFlowReentrantGuard",
        "DataFlowResetStateNotCalledError",
        "DataFlowTerminated",
        "ProxyDataFlow",
        "RNGDataFlow",
    ),
    "batch": ("BatchData", "BatchDataByShape", "aggregate_batch"),
    "common": (
        "CacheData",
        "FixedSizeData",
        "LocallyShuffleData",
        "MapData",
        "MapDataComponent",
        "RepeatedData",
        "RepeatedDataPoint",
        "SelectComponent",
    ),
    "format": (
        "HDF5Data",
        "LMDBData",
        "LMDBDataDecoder",
        "LMDBDataPoint",
        "NpzData",
        "SVMLightData",
    ),
    "image": (
        "AugmentImageComponent",
        "AugmentImageComponents",
        "AugmentImageCoordinates",
        "ImageFromFile",
    ),
    "mix": ("ConcatData", "JoinData", "RandomChooseData", "RandomMixData"),
    "parallel": (
        "MultiProcessPrefetchData",
        "MultiProcessRunner",
        "MultiProcessRunnerZMQ",
        "MultiThreadPrefetchData",
        "MultiThreadRunner",
        "PrefetchData",
        "PrefetchDataZMQ",
    ),
    "parallel_map": (
        "MultiProcessMapAndBatchData",
        "MultiProcessMapAndBatchDataZMQ",
        "MultiProcessMapData",
        "MultiProcessMapDataZMQ",
        "MultiThreadMapData",
        "ThreadedMapData",
    ),
    "processes": ("DataFlowWorkerError",),
    "raw": ("DataFromGenerator", "DataFromIterable", "DataFromList", "DataFromQueue", "FakeData"),
    "remote": ("RemoteDataZMQ", "send_dataflow_zmq"),
    "seeds": ("fix_rng_seed",),
    "serialize": (
        "HDF5Serializer",
        "LMDBSerializer",
        "NumpySerializer",
        "TFRecordSerializer",
    ),
    "speed": ("PrintData", "TestDataSpeed"),
    "values": ("dumps", "loads"),
}
# Packages that are names themselves.
_PACKAGES = ("dataset", "imgaug")
_LAZY = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted((*_LAZY, *_PACKAGES))


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
