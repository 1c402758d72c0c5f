"""What a converter is given, and what it gives back: files and plain values, since it works in a process of its own.

A converter that crashes, leaks or sets global state (TensorFlow's, OpenVINO's) must not hurt the export, nor the
training that may run in the same process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from moxserve.export.manifest import TensorNames
from moxserve.export.targets import Calibration, Target
from moxserve.types import Signature

__all__ = ["FROZEN_GRAPH", "Built", "Converter", "Failure", "Rows", "Work"]

FROZEN_GRAPH = "frozen_graph.pb"


@dataclass(frozen=True)
class Rows:
    """Real rows in a folder: one `.npy` file a tensor, so that they can be mapped instead of copied.

    Attributes:
        folder: absolute path.
        count: how many rows each array has; 0 when there are none.
        inputs: alias -> file name.
        outputs: alias -> file name: what the source model answers to them.
        labels: file name of `[count]` whole numbers, the right class of each row; empty when they are not known.
        scores: alias of the `[count, classes]` output whose largest entry is the model's choice; empty without one.
    """

    folder: str
    count: int = 0
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    labels: str = ""
    scores: str = ""

    def load_inputs(self) -> dict[str, np.ndarray]:
        """Return the inputs by alias, `[count, ...]` each."""
        return {alias: self._load(name) for alias, name in self.inputs.items()}

    def load_outputs(self) -> dict[str, np.ndarray]:
        """Return the source model's answers by alias, `[count, ...]` each."""
        return {alias: self._load(name) for alias, name in self.outputs.items()}

    def load_labels(self) -> np.ndarray | None:
        """Return the right classes, `[count] int64`, or None when they are not known."""
        return self._load(self.labels) if self.labels else None

    def _load(self, name: str) -> np.ndarray:
        # Strings are saved as objects; the files are this process's parent's own.
        array: np.ndarray = np.load(os.path.join(self.folder, name), allow_pickle=True)
        # NumPy's files do not know bfloat16, the only element type of two bytes that they do not.
        return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


@dataclass(frozen=True)
class Work:
    """One variant to make.

    Attributes:
        target: the form.
        model: folder of a plain SavedModel without variables, and of the same graph as `frozen_graph.pb`: frozen, cut
            to the signature, transformed.
        signature: the one signature that it has; `TensorSpec.tensor` names the graph's tensors.
        directory: empty folder to write into.
        calibration: real rows to find ranges with; may be empty.
        evaluation: real rows to judge the result with, as few of them as possible the same; may be empty.
        settings: how to quantize.
        opset: of ONNX.
        learned: the graph has fake-quantization operations that hold learned ranges; int8 takes these and needs no
            calibration.
    """

    target: Target
    model: str
    signature: Signature
    directory: str
    calibration: Rows
    evaluation: Rows
    settings: Calibration = field(default_factory=Calibration)
    opset: int = 17
    learned: bool = False


@dataclass(frozen=True)
class Built:
    """A variant on disk, not yet verified.

    Attributes:
        file: name of the model file inside the work's directory, such as `model.onnx`; empty for a SavedModel.
        names: what the signature's tensors are called in it.
        notes: what the user should know, one sentence each.
        details: facts for the report, JSON values: opset, operations by type, what stayed in floating point and why.
    """

    file: str
    names: TensorNames
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Why a variant could not be made.

    Attributes:
        message: what was wrong.
        hint: what to do; empty when nobody knows.
    """

    message: str
    hint: str = ""


class Converter(Protocol):
    """A function that makes variants of one format."""

    def __call__(self, work: Work) -> Built:
        """Make the variant in `work.directory`.

        Raises:
            MissingExtraError: its package is not installed.
            ExportError: the model cannot be converted; says which operation is in the way, and what to do.
        """
        ...
