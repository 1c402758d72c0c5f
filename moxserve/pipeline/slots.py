"""The four slots of a pipeline, and the life of a plugin in each. No TensorFlow.

A plugin is a class: its fields are its parameters, and one method does its work.

    1. `pipeline validate`, `list`, `show`: the class is imported and filled from YAML. TensorFlow is not there.
    2. `check()`: every field is valid, every path that must exist does. Cheap looks at the disk, still no TensorFlow.
    3. `InputPlugin.build()` -> InputBundle. TensorFlow may be imported from here on. No graph exists yet: the
       bundle's input_fn is called later, once a graph, inside that graph.
    4. `ModelPlugin.build(bundle)` -> model_fn, `OptimizerPlugin.build()` -> optimizer_fn. They too only return
       functions; the executor calls those when it builds a graph.
    5. `RunPlugin.run(job)` -> RunReport. Calls `mox.run` one or more times. Afterwards a checkpoint exists.
    6. The stages export, evaluate and predict use the same input_fn and model_fn with that checkpoint.

The smallest plugin of each slot is in `plugins/moxserve_plugins`: mnist_idx, mnist_softmax, optimizers, run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from moxserve.config.models import PluginConfig
from moxserve.errors import UsageError

if TYPE_CHECKING:
    from moxserve.tensorflow.executor.spec import RunResult

__all__ = [
    "InputBundle",
    "InputPlugin",
    "ModelPlugin",
    "OptimizerPlugin",
    "ParameterError",
    "RunJob",
    "RunPlugin",
    "RunReport",
]


class ParameterError(UsageError):
    """A parameter does not go with the rest of the pipeline; the runner adds its place in the file.

    Args:
        key: dotted key, such as `model.num_classes`.
        message: what is wrong with it.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key
        self.reason = message


@dataclass(frozen=True)
class InputBundle:
    """Data, as an input plugin gives it.

    Attributes:
        input_fn: `input_fn(mode, **kwargs)` -> one tensor for each name. TRAIN never ends; EVAL and PREDICT give each
            row once, in a fixed order, the last batch as small as it comes.
        names: of the tensors, such as `("image", "label")`.
        batch_size: rows a step.
        eval_batch_size: rows of a step of EVAL and PREDICT; None for batch_size.
        auto_batch: True when input_fn gives single rows that the executor batches.
        labels: class names by index; None when there are none.
        num_samples: rows by mode; a mode that has no data is missing.
        row_names: by mode, a name for each row (a file, say) in the order of EVAL and PREDICT; may be empty.
        moments: mean and standard deviation of a numeric tensor, by its name, over the training rows; None where nobody
            knows them.
        missing: where the first missing number of a tensor is, by its name, for those that have one.
        diagnose: called when TensorFlow failed in the input; says which file or row is to blame, or nothing.
    """

    input_fn: Callable[..., Any]
    names: tuple[str, ...]
    batch_size: int
    eval_batch_size: int | None = None
    auto_batch: bool = False
    labels: tuple[str, ...] | None = None
    num_samples: Mapping[str, int] = field(default_factory=dict)
    row_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    moments: Callable[[str], tuple[Any, Any]] | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    diagnose: Callable[[], str | None] | None = None

    def rows_per_step(self, mode: str) -> int:
        """Return the batch size of a mode."""
        return self.batch_size if mode == "TRAIN" else self.eval_batch_size or self.batch_size

    def steps(self, mode: str) -> int:
        """Return how many steps one pass over a mode's rows takes, a smaller last one included.

        Raises:
            ParameterError: the input has no rows for that mode.
        """
        rows = self.num_samples.get(mode, 0)
        if rows == 0:
            what = "training" if mode == "TRAIN" else "evaluation"
            raise ParameterError("input", f"gives no {what} data, which {mode} needs")
        return -(-rows // self.rows_per_step(mode))


@dataclass(frozen=True)
class RunJob:
    """What a run plugin gets.

    Attributes:
        data: the input.
        model_fn: as `mox.run` takes it.
        optimizer_fn: as `mox.run` takes it; None when the pipeline has no optimizer.
        log_dir: where checkpoints and summaries go.
        leads: False in a process of a cluster that only trains along: it has nothing to evaluate or to write.
    """

    data: InputBundle
    model_fn: Callable[..., Any]
    optimizer_fn: Callable[..., Any] | None
    log_dir: str
    leads: bool = True


@dataclass(frozen=True)
class RunReport:
    """What a run came to.

    Attributes:
        checkpoint: prefix of the checkpoint that later stages use; None when there is none.
        train: result of the training, if there was one.
        metrics: of the evaluation over all rows, if there was one.
        rows: how many rows were evaluated or predicted.
    """

    checkpoint: str | None
    train: RunResult | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    rows: int = 0


def _values(plugin: PluginConfig) -> str:
    values = plugin.model_dump(exclude={"plugin"})
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


class InputPlugin(PluginConfig, ABC):
    """Base of input plugins."""

    slot: ClassVar[str] = "input"

    def describe(self) -> str:
        """Say in one line what there is, for `--dry-run`. No TensorFlow."""
        return ", ".join(f"{name}={value}" for name, value in self.model_dump(exclude={"plugin"}).items())

    @abstractmethod
    def build(self) -> InputBundle:
        """Index the data. Runs once, before any graph exists.

        Raises:
            DataError: the data are not what the parameters say.
        """


class ModelPlugin(PluginConfig, ABC):
    """Base of model plugins."""

    slot: ClassVar[str] = "model"

    def describe(self) -> str:
        """Say in one line what it is, for `--dry-run`. No TensorFlow."""
        return _values(self)

    @abstractmethod
    def build(self, data: InputBundle) -> Callable[..., Any]:
        """Return the model_fn. Runs once, after the input is built and before any graph exists.

        Returns:
            `model_fn(inputs, mode, **kwargs)` -> mox.ModelSpec, with the same variables in every mode.

        Raises:
            ParameterError: a parameter does not go with the input.
        """


class OptimizerPlugin(PluginConfig, ABC):
    """Base of optimizer plugins."""

    slot: ClassVar[str] = "optimizer"

    def describe(self) -> str:
        """Say in one line what it is, for `--dry-run`. No TensorFlow."""
        return _values(self)

    @abstractmethod
    def build(self) -> Callable[..., Any]:
        """Return the optimizer_fn: `optimizer_fn()` -> optimizer, called inside the training graph."""


class RunPlugin(PluginConfig, ABC):
    """Base of run plugins.

    Attributes:
        trains: whether the pipeline needs an optimizer.
    """

    slot: ClassVar[str] = "run"
    trains: ClassVar[bool] = True

    log_dir: str

    @abstractmethod
    def run(self, job: RunJob) -> RunReport:
        """Train, evaluate or predict. Runs once, in a process without an active graph."""

    @abstractmethod
    def describe(self) -> str:
        """Say in one line what `run` would do, for `--dry-run`. No TensorFlow."""
