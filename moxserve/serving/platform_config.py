"""`--platform_config_file`: PlatformConfigMap in text. It replaces the flags on sessions, batching, warmup and TFLite.

    platform_configs {
      key: "tensorflow"
      value {
        source_adapter_config {
          [type.googleapis.com/tensorflow.serving.SavedModelBundleSourceAdapterConfig] {
            legacy_config {
              session_config { intra_op_parallelism_threads: 2 }
              batching_parameters { max_batch_size { value: 64 } }
              saved_model_tags: "serve"
              enable_model_warmup: true
            }
          }
        }
      }
    }

The messages are in no Python package; their fields are declared here. What cannot be honoured is refused by its name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2

from moxserve import file
from moxserve.errors import UsageError
from moxserve.protocol import messages
from moxserve.protocol.textproto import batching_parameters, read_text

__all__ = ["PlatformConfig", "read_platform_config"]

logger = logging.getLogger(__name__)

_PACKAGE = "tensorflow.serving"
_FILE = "moxserve/platform_config.proto"
_PLATFORM = "tensorflow"
_ADAPTER = f"{_PACKAGE}.SavedModelBundleSourceAdapterConfig"
_MESSAGES: Mapping[str, tuple[tuple[str, int, str], ...]] = {
    "PlatformConfig": (("source_adapter_config", 1, ".google.protobuf.Any"),),
    "SavedModelBundleSourceAdapterConfig": (("legacy_config", 1000, "SessionBundleConfig"),),
    "ModelWarmupOptions": (
        ("num_request_iterations", 1, ".google.protobuf.Int32Value"),
        ("num_model_warmup_threads", 2, ".google.protobuf.Int32Value"),
        ("model_name", 3, "STRING"),
        ("model_version", 4, "INT64"),
        ("enable_all_batch_sizes_warmup", 5, "BOOL"),
    ),
    "SessionBundleConfig": (
        ("session_target", 1, "STRING"),
        ("session_config", 2, ".tensorflow.ConfigProto"),
        ("batching_parameters", 3, "BatchingParameters"),
        ("session_run_load_threadpool_index", 4, ".google.protobuf.Int32Value"),
        ("experimental_transient_ram_bytes_during_load", 5, "UINT64"),
        ("saved_model_tags", 6, "repeated STRING"),
        ("experimental_fixed_input_tensors", 778, "repeated .tensorflow.NamedTensorProto"),
        ("enable_model_warmup", 779, "BOOL"),
        ("model_warmup_options", 780, "ModelWarmupOptions"),
        ("enable_session_metadata", 781, "BOOL"),
        ("remove_unused_fields_from_bundle_metagraph", 782, "BOOL"),
        ("prefer_tflite_model", 783, "BOOL"),
        ("num_tflite_interpreters_per_pool", 785, "INT32"),
        ("num_tflite_pools", 786, "INT32"),
        ("mixed_precision", 788, "STRING"),
    ),
}
_REFUSED = {
    "session_target": "the model runs in this process",
    "experimental_fixed_input_tensors": "send these inputs with each request, or give them defaults in the signature",
}
_WITHOUT_EFFECT = (
    "session_run_load_threadpool_index", "experimental_transient_ram_bytes_during_load", "enable_session_metadata",
)  # fmt: skip


@dataclass(frozen=True)
class PlatformConfig:
    """What the file says.

    Attributes:
        session_config: a serialized ConfigProto.
        batching: the bytes of a BatchingParameters message; None when batching is not asked for.
        flags: values of the flags that the file replaces.
    """

    session_config: bytes
    batching: bytes | None
    flags: Mapping[str, Any]


def read_platform_config(path: str) -> PlatformConfig:
    """Read the file.

    Raises:
        ConfigError: it is no such text; tells line and column.
        UsageError: it cannot be read, or asks for what this server does not have.
    """
    _declare()
    message = read_text(path, messages.by_full_name(f"{_PACKAGE}.PlatformConfigMap")(), "the platform configuration")
    _refuse_bytes(path)
    for name in message.platform_configs:
        if name != _PLATFORM:
            raise UsageError(f"{path}: platform_configs has the key {name!r}; expected {_PLATFORM!r} only")
    if _PLATFORM not in message.platform_configs:
        raise UsageError(f"{path}: platform_configs lacks the key {_PLATFORM!r}")
    stored = message.platform_configs[_PLATFORM].source_adapter_config
    kind = stored.type_url.rpartition("/")[2]
    if kind != _ADAPTER:
        raise UsageError(f"{path}: source_adapter_config is of type {kind or 'none'!r}; expected {_ADAPTER}")
    config = messages.by_full_name(_ADAPTER).FromString(stored.value).legacy_config
    _check(path, config)
    batching = config.batching_parameters.SerializeToString() if config.HasField("batching_parameters") else None
    return PlatformConfig(config.session_config.SerializeToString(), batching, _flags(config))


def _refuse_bytes(path: str) -> None:
    if re.search(r"\btype_url\s*:", file.read(path)):
        raise UsageError(
            f"{path}: source_adapter_config is given as type_url and bytes; expected its fields in text",
            hint=f"write source_adapter_config {{ [type.googleapis.com/{_ADAPTER}] {{ legacy_config {{ ... }} }} }}",
        )


def _check(path: str, config: Any) -> None:
    for name, why in _REFUSED.items():
        if getattr(config, name):
            raise UsageError(f"{path}: {name} cannot be honoured: {why}")
    warmup = config.model_warmup_options
    if warmup.enable_all_batch_sizes_warmup:
        raise UsageError(
            f"{path}: enable_all_batch_sizes_warmup cannot be honoured: record a request of each size instead"
        )
    for name in _WITHOUT_EFFECT:
        if config.HasField(name) if name == "session_run_load_threadpool_index" else getattr(config, name):
            logger.warning("%s: %s means nothing to this server", path, name)
    if warmup.num_model_warmup_threads.value > 1:
        logger.warning("%s: num_model_warmup_threads: records are replayed one after the other here", path)
    if config.session_config.HasField("rpc_options") or config.session_config.HasField("cluster_def"):
        raise UsageError(f"{path}: session_config asks for a cluster; the model runs in this process")


def _flags(config: Any) -> dict[str, Any]:
    session = config.session_config
    return {
        "tensorflow_session_parallelism": 0,
        "tensorflow_intra_op_parallelism": session.intra_op_parallelism_threads,
        "tensorflow_inter_op_parallelism": session.inter_op_parallelism_threads,
        "per_process_gpu_memory_fraction": session.gpu_options.per_process_gpu_memory_fraction,
        "tensorflow_session_config_file": "",
        "mixed_precision": config.mixed_precision,
        "enable_batching": config.HasField("batching_parameters"),
        "batching_parameters_file": "",
        "enable_per_model_batching_parameters": False,
        "enable_model_warmup": config.enable_model_warmup,
        "num_request_iterations_for_warmup": config.model_warmup_options.num_request_iterations.value,
        "saved_model_tags": ",".join(config.saved_model_tags) or "serve",
        "prefer_tflite_model": config.prefer_tflite_model,
        "num_tflite_pools": config.num_tflite_pools,
        "num_tflite_interpreters_per_pool": max(1, config.num_tflite_interpreters_per_pool),
    }


@cache
def _declare() -> None:
    """Add the messages to the pool that has ConfigProto, so that text finds them inside an Any."""
    pool = messages.pool()
    declared = descriptor_pb2.FileDescriptorProto(name=_FILE, package=_PACKAGE, syntax="proto3")
    needed = ("tensorflow.ConfigProto", "tensorflow.NamedTensorProto", "google.protobuf.Any")
    files = {pool.FindMessageTypeByName(name).file.name for name in (*needed, "google.protobuf.Int32Value")}
    declared.dependency.extend(sorted(files))
    for name, fields in _MESSAGES.items():
        message = declared.message_type.add(name=name)
        for field, number, kind in fields:
            _add(message, field, number, kind)
    batching_parameters().DESCRIPTOR.CopyToProto(declared.message_type.add())
    _add_map(declared.message_type.add(name="PlatformConfigMap"))
    pool.Add(declared)


def _add(message: Any, name: str, number: int, kind: str) -> None:
    repeated, kind = kind.startswith("repeated "), kind.removeprefix("repeated ")
    entry = message.field.add(name=name, number=number)
    entry.label = entry.LABEL_REPEATED if repeated else entry.LABEL_OPTIONAL
    if kind.isupper():
        entry.type = getattr(entry, f"TYPE_{kind}")
    else:
        entry.type = entry.TYPE_MESSAGE
        entry.type_name = kind if kind.startswith(".") else f".{_PACKAGE}.{kind}"


def _add_map(message: Any) -> None:
    """Declare `map<string, PlatformConfig> platform_configs = 1`."""
    pair = message.nested_type.add(name="PlatformConfigsEntry")
    pair.options.map_entry = True
    _add(pair, "key", 1, "STRING")
    _add(pair, "value", 2, "PlatformConfig")
    _add(message, "platform_configs", 1, "repeated PlatformConfigMap.PlatformConfigsEntry")
