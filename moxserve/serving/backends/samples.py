"""Inputs to try a variant with: the version's own warmup records, or made-up ones that fit its signature."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from moxserve import file
from moxserve.errors import MoxserveError
from moxserve.export.manifest import WARMUP_PATH as WARMUP_FILE
from moxserve.protocol.prediction_log import parse_log, requests_of
from moxserve.protocol.tfrecord import read_records
from moxserve.types import Signature, TensorSpec

__all__ = ["WARMUP_FILE", "Sample", "made_up", "recorded", "without_ones"]

logger = logging.getLogger(__name__)

_MAX_RECORDS = 32
_MAX_EACH = 4
_MAX_BYTES = 64 << 20
_ROWS = 8
_SIDE = 4
_IMAGE_SIDE = 64


@dataclass(frozen=True)
class Sample:
    """A request to try.

    Attributes:
        signature: key.
        inputs: by alias.
    """

    signature: str
    inputs: Mapping[str, np.ndarray]


def recorded(version_dir: str) -> list[Sample]:
    """Return some of the warmup records, a few a signature; empty when there are none that can be read."""
    path = os.path.join(version_dir, WARMUP_FILE)
    if not file.exists(path):
        return []
    kept: dict[str, list[Sample]] = {}
    left = _MAX_BYTES
    try:
        for payload in itertools.islice(read_records(path), _MAX_RECORDS):
            left -= len(payload)
            for sample in _samples(payload):
                if left > 0 and len(kept.setdefault(sample.signature, [])) < _MAX_EACH:
                    kept[sample.signature].append(sample)
    except (MoxserveError, OSError) as error:
        # Replaying them will fail the load with the right status; here it only matters that they are of no use.
        logger.debug("%s: warmup records are not used to compare variants: %s", path, error)
        return []
    return [sample for samples in kept.values() for sample in samples]


def _samples(payload: bytes) -> list[Sample]:
    return [Sample(request.signature, request.inputs) for request in requests_of(parse_log(payload))]


def made_up(signature: Signature) -> Iterator[Sample]:
    """Make requests that fit a signature: random ones, then zeros for models that do not take random ones.

    Gives nothing for a signature with strings, which only mean something when somebody wrote them, or with tensors of
    any rank, of which some would end the process (convolutions of TensorFlow).
    """
    if any(spec.dtype.name == "string" or spec.shape is None for spec in signature.inputs.values()):
        return
    random = np.random.default_rng(20240229)
    yield Sample(signature.name, {a: _random(s, random) for a, s in signature.inputs.items()})
    yield Sample(signature.name, {a: np.zeros(_shape(s), s.dtype.numpy) for a, s in signature.inputs.items()})


def without_ones(sample: Sample, signature: Signature) -> Sample | None:
    """Return the same request without dimensions of size 1 at the end; None when there are none.

    JSON rows such as `[1.0, 2.0]` make such tensors, and graphs that only compute with each element take them.
    """
    inputs = {}
    for alias, array in sample.inputs.items():
        spec = signature.inputs[alias]
        wanted = spec.shape or ()
        inputs[alias] = array[..., 0] if array.ndim > 1 and array.ndim == len(wanted) and wanted[-1] == 1 else array
    if all(inputs[alias].ndim == array.ndim for alias, array in sample.inputs.items()):
        return None
    return Sample(sample.signature, inputs)


def _shape(spec: TensorSpec) -> tuple[int, ...]:
    shape = spec.shape or ()
    side = _IMAGE_SIDE if len(shape) >= 4 else _SIDE
    return tuple((side if i else _ROWS) if size is None else size for i, size in enumerate(shape))


def _random(spec: TensorSpec, random: np.random.Generator) -> np.ndarray:
    shape, dtype = _shape(spec), spec.dtype.numpy
    if dtype.kind in "fVc":
        return np.asarray(random.random(shape) * 2 - 0.5).astype(dtype)
    if spec.dtype.name == "uint8":
        return random.integers(0, 256, shape).astype(dtype)
    # Small ones: they may be indices into a table.
    return random.integers(0, 2, shape).astype(dtype)
