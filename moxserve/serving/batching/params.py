"""What may be set about batching: the fields of a BatchingParameters file, their defaults and their rules.

A file is protobuf text: `max_batch_size { value: 128 } allowed_batch_sizes: 64 allowed_batch_sizes: 128`. Field names,
defaults and error texts are those of tensorflow_model_server.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moxserve import file
from moxserve.errors import InvalidArgument, UsageError
from moxserve.protocol import textproto
from moxserve.serving.cpus import cpus
from moxserve.serving.execution.pool import MAX_WAITING

__all__ = [
    "MAX_WAITING",
    "PARAMETERS_FILE",
    "BatchingOptions",
    "BatchingParameters",
    "batching_options",
    "from_message",
    "read_parameters",
    "server_parameters",
    "version_parameters",
]

logger = logging.getLogger(__name__)

PARAMETERS_FILE = "batching_params.pbtxt"


@dataclass(frozen=True, slots=True)
class BatchingParameters:
    """How requests are put together.

    Attributes:
        max_batch_size: rows of the largest batch, and of the largest request.
        batch_timeout_micros: how long the first request of a batch that is not full waits for others, in us.
        max_enqueued_batches: batches that may wait in a queue, besides those that are run.
        num_batch_threads: batches run at once, of all models together.
        thread_pool_name: of those threads.
        allowed_batch_sizes: a batch is filled up to the next of these rows; growing, the last one is max_batch_size.
            Empty for any number.
        pad_variable_length_inputs: whether tensors whose other dimensions differ are filled up to be put together.
        enable_large_batch_splitting: whether the rows of one request may be run in several batches.
        max_execution_batch_size: rows of the largest batch when requests are split; 0 takes max_batch_size.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = field(default_factory=cpus)
    thread_pool_name: str = "batch_threads"
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 0

    @property
    def execution_limit(self) -> int:
        """Rows of the largest batch that is run."""
        if self.enable_large_batch_splitting and self.max_execution_batch_size:
            return self.max_execution_batch_size
        return self.max_batch_size

    def check_threads(self) -> None:
        """Check what concerns all models.

        Raises:
            InvalidArgument: there would be no thread.
        """
        if self.num_batch_threads < 1:
            raise InvalidArgument(f"num_batch_threads must be positive; was {self.num_batch_threads}")

    def check(self) -> None:
        """Check what concerns a model.

        Raises:
            InvalidArgument: a value is out of range, or two contradict each other.
        """
        _positive("input_batch_size_limit", self.max_batch_size)
        if self.batch_timeout_micros < 0:
            raise InvalidArgument(f"batch_timeout_micros must be non-negative; was {self.batch_timeout_micros}")
        _positive("max_enqueued_batches", self.max_enqueued_batches)
        if self.max_execution_batch_size < 0:
            raise InvalidArgument(f"max_execution_batch_size must be positive; was {self.max_execution_batch_size}")
        if self.enable_large_batch_splitting and self.max_batch_size < self.execution_limit:
            raise InvalidArgument(
                "When enable_large_batch_splitting is true, input_batch_size_limit must be greater than or equal to "
                f"max_execution_batch_size. They are {self.max_batch_size} and {self.execution_limit}"
            )
        self._check_sizes()

    def _check_sizes(self) -> None:
        sizes = self.allowed_batch_sizes
        if not sizes:
            return
        if sizes[-1] != self.max_batch_size:
            raise InvalidArgument(
                "Last entry in allowed_batch_sizes must match max_batch_size; last entry was "
                f"{sizes[-1]}; expected {self.max_batch_size}"
            )
        if sizes[0] < 1 or any(small >= large for small, large in itertools.pairwise(sizes)):
            raise InvalidArgument(
                f"allowed_batch_sizes must be positive and in increasing order; was {', '.join(map(str, sizes))}"
            )

    def padded(self, rows: int) -> int:
        """Return how many rows a batch of so many is filled up to; as many when no allowed size is as large."""
        return next((size for size in self.allowed_batch_sizes if size >= rows), rows)


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise InvalidArgument(f"{name} must be positive; was {value}")


@dataclass(frozen=True)
class BatchingOptions:
    """Whether and how a server puts requests together.

    Attributes:
        enabled: whether it does.
        parameters: for all models; None learns from the load. With `per_model` only its threads count.
        per_model: whether each version brings its parameters, in `batching_params.pbtxt`; one without is run unbatched.
        max_waiting: requests that may wait for a batch of one queue when there are no parameters.
        threads: batches run at once when there are no parameters; 0 takes one a CPU.
    """

    enabled: bool = False
    parameters: BatchingParameters | None = None
    per_model: bool = False
    max_waiting: int = MAX_WAITING
    threads: int = 0


def read_parameters(path: str) -> BatchingParameters:
    """Read a file.

    Raises:
        ConfigError: it is no BatchingParameters text; tells line and column.
        UsageError: it cannot be read.
    """
    message = textproto.read_text(path, textproto.batching_parameters(), "the batching parameters")
    return from_message(message)


def from_message(message: Any) -> BatchingParameters:
    """Turn a BatchingParameters message into parameters; nothing is checked."""
    given: dict[str, Any] = {
        entry.name: value.value if entry.message_type else value for entry, value in message.ListFields()
    }
    if "allowed_batch_sizes" in given:
        given["allowed_batch_sizes"] = tuple(given["allowed_batch_sizes"])
    return BatchingParameters(**given)


def server_parameters(path: str, *, per_model: bool = False) -> BatchingParameters:
    """Read the file of `--batching_parameters_file` and check it.

    Args:
        path: the file.
        per_model: whether versions bring their own, so that only the threads of this one count.

    Raises:
        UsageError: it cannot be read or is wrong.
    """
    return _checked(read_parameters(path), f"--batching_parameters_file={path}", per_model=per_model)


def _checked(parameters: BatchingParameters, where: str, *, per_model: bool) -> BatchingParameters:
    try:
        parameters.check_threads()
        if not per_model:
            parameters.check()
    except InvalidArgument as error:
        raise UsageError(f"{where}: {error.message}") from None
    return parameters


def batching_options(values: Mapping[str, Any], platform: bytes | None = None) -> BatchingOptions:
    """Turn the values of the flags on batching into options.

    Args:
        values: of `moxserve.serving.flags.FLAGS`.
        platform: BatchingParameters message of the platform configuration, instead of a file's.

    Raises:
        UsageError: the flags contradict each other, or the file cannot be read or is wrong.
    """
    path, per_model = values["batching_parameters_file"], values["enable_per_model_batching_parameters"]
    if not values["enable_batching"]:
        if path:
            raise UsageError(
                "server_options.batching_parameters_file is set without setting server_options.enable_batching to "
                "true.",
                hint="add --enable_batching",
            )
        if per_model:
            logger.warning("--enable_per_model_batching_parameters: it has no effect without --enable_batching")
        return BatchingOptions()
    parameters = server_parameters(path, per_model=per_model) if path else None
    if platform is not None:
        message = textproto.batching_parameters()
        message.ParseFromString(platform)
        parameters = _checked(from_message(message), "--platform_config_file", per_model=False)
    return BatchingOptions(True, parameters, per_model)


def version_parameters(version_dir: str) -> BatchingParameters | None:
    """Read what a version directory says about itself; None when it says nothing.

    Raises:
        InvalidArgument: it says something wrong.
    """
    path = os.path.join(version_dir, PARAMETERS_FILE)
    if not file.exists(path):
        return None
    try:
        parameters = read_parameters(path)
    except UsageError as error:
        raise InvalidArgument(error.message) from None
    try:
        parameters.check()
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error.message}") from None
    return parameters
