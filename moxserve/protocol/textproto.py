"""Configuration files in protobuf text format, and the messages that no Python package carries.

`MonitoringConfig`, `SSLConfig` and `BatchingParameters` of the original are not in the tensorflow-serving-api wheel;
their few fields are declared here, under their own names.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2

from moxserve import file
from moxserve.errors import ConfigError, ConfigProblem, UsageError
from moxserve.protocol import messages

__all__ = ["batching_parameters", "monitoring_config", "read_text", "ssl_config"]

_PACKAGE = "tensorflow.serving"
_FIELDS = {
    "PrometheusConfig": (("enable", "TYPE_BOOL"), ("path", "TYPE_STRING")),
    "MonitoringConfig": (("prometheus_config", "PrometheusConfig"),),
    "SSLConfig": (
        ("server_key", "TYPE_STRING"),
        ("server_cert", "TYPE_STRING"),
        ("custom_ca", "TYPE_STRING"),
        ("client_verify", "TYPE_BOOL"),
    ),
    # Scalars in a message of their own, `max_batch_size { value: 8 }`, so that 0 differs from nothing.
    "BatchingParameters": (
        ("max_batch_size", "Int64Value"),
        ("batch_timeout_micros", "Int64Value"),
        ("max_enqueued_batches", "Int64Value"),
        ("num_batch_threads", "Int64Value"),
        ("thread_pool_name", "StringValue"),
        ("allowed_batch_sizes", "repeated TYPE_INT64"),
        ("pad_variable_length_inputs", "TYPE_BOOL"),
        ("max_execution_batch_size", "Int64Value"),
        ("enable_large_batch_splitting", "BoolValue"),
    ),
}


def monitoring_config() -> Any:
    """Return an empty `MonitoringConfig` message: prometheus_config { enable, path }."""
    return _classes()["MonitoringConfig"]()


def ssl_config() -> Any:
    """Return an empty `SSLConfig` message: server_key, server_cert, custom_ca (PEM texts), client_verify."""
    return _classes()["SSLConfig"]()


def batching_parameters() -> Any:
    """Return an empty `BatchingParameters` message; `moxserve.serving.batching.params` tells its fields."""
    return _classes()["BatchingParameters"]()


@cache
def _classes() -> dict[str, Any]:
    wrappers = descriptor_pb2.FileDescriptorProto.FromString(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file_proto = descriptor_pb2.FileDescriptorProto(
        name="moxserve/server_config.proto", package=_PACKAGE, syntax="proto3", dependency=[wrappers.name]
    )
    for message, fields in _FIELDS.items():
        declared = file_proto.message_type.add(name=message)
        for number, (name, kind) in enumerate(fields, 1):
            _declare(declared.field.add(name=name, number=number), kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(wrappers)
    pool.Add(file_proto)
    return {m: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{m}")) for m in _FIELDS}


def _declare(entry: Any, kind: str) -> None:
    repeated, kind = kind.startswith("repeated "), kind.removeprefix("repeated ")
    entry.label = entry.LABEL_REPEATED if repeated else entry.LABEL_OPTIONAL
    if kind.startswith("TYPE_"):
        entry.type = getattr(entry, kind)
        return
    entry.type = entry.TYPE_MESSAGE
    entry.type_name = f".{_PACKAGE}.{kind}" if kind in _FIELDS else f".google.protobuf.{kind}"


def read_text(path: str, message: Any, what: str) -> Any:
    """Read a file into a message, and return it.

    Args:
        path: the file.
        message: an empty message.
        what: the file in words, for errors, such as `the model configuration`.

    Raises:
        ConfigError: the file is empty or is no such text; tells line and column.
        UsageError: it cannot be read.
    """
    try:
        text: str = file.read(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {what} {path}: {error}") from None
    name = message.DESCRIPTOR.full_name
    if not text:
        # Half of a rewrite in place; who wants nothing writes an empty block, such as `model_config_list {}`.
        raise ConfigError([ConfigProblem(f"Invalid protobuf file: '{path}': it is empty; expected a {name}", path)])
    try:
        return messages.parse_text(text, message)
    except text_format.ParseError as error:
        line, column = error.GetLine() or 0, error.GetColumn() or 0
        reason = str(error).partition(" : ")[2] or str(error)
        problem = ConfigProblem(
            f"Invalid protobuf file: '{path}'. Error parsing text-format {name}: {line}:{column}: {reason}",
            path, line, column, source_line=_line(text, line),
        )  # fmt: skip
        raise ConfigError([problem]) from None


def _line(text: str, number: int) -> str:
    lines = text.split("\n")
    return lines[number - 1].expandtabs(1) if 0 < number <= len(lines) else ""
