from __future__ import annotations

import os
from pathlib import Path

import pytest

from moxserve.errors import ConfigError, InvalidArgument, UsageError
from moxserve.serving.batching.params import (
    BatchingOptions,
    BatchingParameters,
    batching_options,
    read_parameters,
    server_parameters,
    version_parameters,
)

FULL = """
max_batch_size { value: 128 }
batch_timeout_micros: { value: 2000 };
max_enqueued_batches { value: 7 }
num_batch_threads { value: 3 }
thread_pool_name { value: "pool" }
allowed_batch_sizes: [8, 64]
allowed_batch_sizes: 128
pad_variable_length_inputs: true
enable_large_batch_splitting { value: true }
max_execution_batch_size { value: 64 }
"""


def write(directory: Path, text: str, name: str = "batching.txt") -> str:
    path = directory / name
    path.write_text(text)
    return str(path)


def test_every_field_is_read(tmp_path: Path) -> None:
    parameters = read_parameters(write(tmp_path, FULL))
    assert parameters == BatchingParameters(128, 2000, 7, 3, "pool", (8, 64, 128), True, True, 64)
    parameters.check()
    assert parameters.execution_limit == 64


def test_defaults_are_the_original_ones(tmp_path: Path) -> None:
    parameters = read_parameters(write(tmp_path, "# nothing\n"))
    assert parameters == BatchingParameters(
        1000, 0, 10, len(os.sched_getaffinity(0)), "batch_threads", (), False, False, 0
    )
    assert parameters.execution_limit == 1000


def test_a_zero_that_is_written_is_one(tmp_path: Path) -> None:
    assert read_parameters(write(tmp_path, "max_enqueued_batches { value: 0 }")).max_enqueued_batches == 0
    assert read_parameters(write(tmp_path, "num_batch_threads { }")).num_batch_threads == 0


def test_the_sample_of_the_original_is_read(shared_dir: Path) -> None:
    parameters = server_parameters(str(shared_dir / "testdata/tfserving/batching_config.txt"))
    assert (parameters.max_batch_size, parameters.max_enqueued_batches, parameters.num_batch_threads) == (
        128,
        1000000,
        8,
    )


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("max_batch_size { value: 1 }\n  no_such_field: 3", ":2:3"),
        ("max_batch_size: 128", ":1:"),
        ("max_batch_size { value: 'x' }", ":1:25"),
        ("allowed_batch_sizes: 1.5", ":1:"),
    ],
)
def test_what_is_no_such_text_is_refused_with_its_place(text: str, place: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_parameters(path)
    assert f"Invalid protobuf file: '{path}'" in caught.value.message
    assert "Error parsing text-format tensorflow.serving.BatchingParameters" in caught.value.message
    assert path + place in caught.value.message


def test_a_missing_or_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the batching parameters"):
        read_parameters(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="it is empty"):
        read_parameters(write(tmp_path, ""))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_batch_threads { value: 0 }", "num_batch_threads must be positive; was 0"),
        ("num_batch_threads { value: -2 }", "num_batch_threads must be positive; was -2"),
        (
            "max_batch_size { value: 32 } allowed_batch_sizes: 16",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 16; expected 32",
        ),
        (
            "allowed_batch_sizes: 16",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 16; expected 1000",
        ),
        (
            "max_batch_size { value: 4 } allowed_batch_sizes: [2, 2, 4]",
            "allowed_batch_sizes must be positive and in increasing order; was 2, 2, 4",
        ),
        (
            "max_batch_size { value: 4 } allowed_batch_sizes: [0, 4]",
            "allowed_batch_sizes must be positive and in increasing order; was 0, 4",
        ),
        ("max_batch_size { value: 0 }", "input_batch_size_limit must be positive; was 0"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros must be non-negative; was -1"),
        ("max_enqueued_batches { value: 0 }", "max_enqueued_batches must be positive; was 0"),
        (
            "enable_large_batch_splitting { value: true } max_batch_size { value: 8 } "
            "max_execution_batch_size { value: 16 }",
            "When enable_large_batch_splitting is true, input_batch_size_limit must be greater than or equal to "
            "max_execution_batch_size.",
        ),
        (
            "enable_large_batch_splitting { value: true } max_execution_batch_size { value: -1 }",
            "max_execution_batch_size must be positive; was -1",
        ),
    ],
)
def test_wrong_values_are_refused_at_the_start(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        server_parameters(path)
    assert f"--batching_parameters_file={path}: {message}" in caught.value.message


def test_only_the_threads_of_the_server_count_when_versions_have_parameters(tmp_path: Path) -> None:
    assert server_parameters(write(tmp_path, "max_batch_size { value: 0 }"), per_model=True).max_batch_size == 0
    with pytest.raises(UsageError, match="num_batch_threads must be positive; was 0"):
        server_parameters(write(tmp_path, "num_batch_threads { value: 0 }"), per_model=True)


def test_a_version_brings_its_own(tmp_path: Path) -> None:
    assert version_parameters(str(tmp_path)) is None
    write(tmp_path, "max_batch_size { value: 5 }", "batching_params.pbtxt")
    parameters = version_parameters(str(tmp_path))
    assert parameters is not None
    assert parameters.max_batch_size == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [("what", "Invalid protobuf file"), ("max_batch_size { value: 0 }", "input_batch_size_limit must be positive")],
)
def test_a_version_with_wrong_ones_does_not_load(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, text, "batching_params.pbtxt")
    with pytest.raises(InvalidArgument, match=message) as caught:
        version_parameters(str(tmp_path))
    assert "batching_params.pbtxt" in caught.value.message


def test_batches_are_filled_up_to_the_next_size() -> None:
    parameters = BatchingParameters(max_batch_size=8, allowed_batch_sizes=(1, 4, 8))
    assert [parameters.padded(rows) for rows in (1, 2, 4, 5, 8, 9)] == [1, 4, 4, 8, 8, 9]
    assert BatchingParameters().padded(13) == 13


def from_flags(**values: object) -> BatchingOptions:
    from moxserve.serving.flags import FLAGS

    return batching_options({**{flag.name: flag.default for flag in FLAGS}, **values})


def test_flags(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert from_flags() == BatchingOptions()
    assert from_flags(enable_batching=True) == BatchingOptions(enabled=True)
    path = write(tmp_path, "max_batch_size { value: 5 }")
    options = from_flags(enable_batching=True, batching_parameters_file=path)
    assert options.parameters == BatchingParameters(max_batch_size=5)
    assert from_flags(enable_batching=True, enable_per_model_batching_parameters=True).per_model
    with pytest.raises(UsageError) as caught:
        from_flags(batching_parameters_file=path)
    assert caught.value.message == (
        "server_options.batching_parameters_file is set without setting server_options.enable_batching to true."
    )
    assert not from_flags(enable_per_model_batching_parameters=True).enabled
    assert "has no effect without --enable_batching" in caplog.text


def test_parameters_of_the_platform_configuration() -> None:
    from moxserve.protocol import textproto
    from moxserve.serving.flags import FLAGS

    message = textproto.batching_parameters()
    message.max_batch_size.value = 9
    values = {**{flag.name: flag.default for flag in FLAGS}, "enable_batching": True}
    assert batching_options(values, message.SerializeToString()).parameters == BatchingParameters(max_batch_size=9)
    message.num_batch_threads.value = 0
    with pytest.raises(UsageError, match="--platform_config_file: num_batch_threads must be positive; was 0"):
        batching_options(values, message.SerializeToString())
