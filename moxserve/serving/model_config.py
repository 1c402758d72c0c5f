"""What to serve, as the user writes it: ModelServerConfig, in text or as a message, checked.

    model_config_list {
      config {
        name: "half"
        base_path: "/models/half"
        model_platform: "tensorflow"                                 # or onnx, openvino, tflite
        model_version_policy { specific { versions: 123 versions: 124 } }   # or latest { num_versions: 2 }, or all {}
        version_labels { key: "stable" value: 123 }
        logging_config {                                             # see request_log
          log_collector_config { filename_prefix: "/var/log/moxserve/requests" }
          sampling_config { sampling_rate: 0.01 }
        }
      }
    }

Texts of errors are those of tensorflow_model_server, since clients look for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moxserve import file
from moxserve.errors import FailedPrecondition, InvalidArgument
from moxserve.protocol import messages
from moxserve.protocol.textproto import read_text
from moxserve.serving.policy import VersionPolicy

__all__ = ["ModelConfig", "RequestLogging", "check_labels", "check_names", "model_configs", "read_config_file"]

_PLATFORM = "tensorflow"
_PLATFORMS = {_PLATFORM: _PLATFORM, "onnx": "onnx", "onnxruntime": "onnx", "openvino": "openvino", "tflite": "tflite"}
_TYPE_TENSORFLOW = 1
_LOG_FORMAT = "tfrecord"


@dataclass(frozen=True)
class RequestLogging:
    """Which requests of a model to keep, and where.

    Attributes:
        filename_prefix: what the paths of the files begin with.
        sampling_rate: share of the requests, 0 to 1.
    """

    filename_prefix: str
    sampling_rate: float


@dataclass(frozen=True)
class ModelConfig:
    """A model to serve.

    Attributes:
        name: that requests use.
        base_path: directory of its versions.
        policy: which of them to serve.
        labels: label -> version, for requests that name a label.
        logging: which of its requests to write to files; None for none.
        platform: `tensorflow`, or the runtime that it is held to: `onnx`, `openvino`, `tflite`.
    """

    name: str
    base_path: str
    policy: VersionPolicy = field(default_factory=VersionPolicy)
    labels: Mapping[str, int] = field(default_factory=dict)
    logging: RequestLogging | None = None
    platform: str = _PLATFORM


def read_config_file(path: str) -> Any:
    """Read a ModelServerConfig message from a file in protobuf text format.

    Raises:
        ConfigError: the file is empty or is no such text; tells line and column.
        UsageError: it cannot be read.
    """
    return read_text(path, messages.ModelServerConfig(), "the model configuration")


def model_configs(message: Any, served: Collection[ModelConfig] = ()) -> list[ModelConfig]:
    """Check a ModelServerConfig message and return its models.

    Args:
        message: with a `model_config_list`.
        served: models that are served now; their platform must stay.

    Raises:
        InvalidArgument: a name, path or platform is wrong.
        UsageError: a base path has a scheme without a file engine.
    """
    if message.WhichOneof("config") != "model_config_list":
        raise InvalidArgument("custom_model_config is not supported; expected a model_config_list")
    listed = message.model_config_list.config
    check_names([config.name for config in listed])
    for config in listed:
        if not (config.base_path.startswith("/") or "://" in config.base_path):
            raise InvalidArgument(
                f"Expected model {config.name} to have an absolute path or URI; got base_path()={config.base_path}"
            )
    before = {config.name: config.platform for config in served}
    for config in listed:
        asked = config.model_platform or _PLATFORM
        if _PLATFORMS.get(asked, asked) != before.get(config.name, _PLATFORMS.get(asked, asked)):
            raise InvalidArgument(
                f"Illegal to change a model's platform. For model {config.name} platform was {before[config.name]} "
                f"and new platform requested is {asked}"
            )
    return [_model_config(config) for config in listed]


def check_names(names: Sequence[str]) -> None:
    """Check that each model has a name of its own.

    Raises:
        InvalidArgument: one is empty or doubled.
    """
    for i, name in enumerate(names):
        if not name:
            raise InvalidArgument(f"model {i + 1} of {len(names)} has no name; requests could not ask for it")
        if name in names[:i]:
            raise InvalidArgument(f"Illegal to list model {name} multiple times in config list")


def _model_config(config: Any) -> ModelConfig:
    _check_platform(config)
    file.exists(config.base_path)  # refuses a scheme that has no file engine; the path itself may appear later
    return ModelConfig(
        config.name, config.base_path, _policy(config), dict(config.version_labels), _logging(config),
        _PLATFORMS[config.model_platform or _PLATFORM],
    )  # fmt: skip


def _check_platform(config: Any) -> None:
    kind, platform = config.model_type, config.model_platform
    either = "ModelServerConfig::model_type (deprecated)"
    if not kind and not platform:
        raise InvalidArgument(
            f"Illegal setting neither {either} nor ModelServerConfig::model_platform, model name is {config.name}"
        )
    if kind and platform:
        raise InvalidArgument(
            f"Illegal setting both {either} and ModelServerConfig::model_platform, model name is {config.name}"
        )
    if kind not in (0, _TYPE_TENSORFLOW):
        raise InvalidArgument(f"ModelServerConfig::model_type choice {kind} not supported.")
    if platform and platform not in _PLATFORMS:
        raise InvalidArgument(f"Model {config.name} requests unsupported platform {platform}")


def _policy(config: Any) -> VersionPolicy:
    policy = config.model_version_policy
    kind = policy.WhichOneof("policy_choice") or "latest"
    if kind == "specific":
        return VersionPolicy(kind, versions=tuple(policy.specific.versions))
    return VersionPolicy(kind, num_versions=max(1, policy.latest.num_versions))


def _logging(config: Any) -> RequestLogging | None:
    if not config.HasField("logging_config"):
        return None
    wanted = config.logging_config
    prefix, kind = wanted.log_collector_config.filename_prefix, wanted.log_collector_config.type
    rate = wanted.sampling_config.sampling_rate
    place = f"Model {config.name}: logging_config"
    if wanted.HasField("custom_logging_config") or kind not in ("", _LOG_FORMAT):
        raise InvalidArgument(f"{place}: expected a log_collector_config of type {_LOG_FORMAT!r} or none; got {kind!r}")
    if not prefix.startswith("/") or prefix.endswith("/") or "\0" in prefix:
        raise InvalidArgument(
            f"{place}: log_collector_config.filename_prefix={prefix!r}: expected an absolute path that names of files "
            "can be put behind, such as /var/log/moxserve/requests"
        )
    folder = os.path.dirname(prefix)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidArgument(f"{place}: the directory {folder} is not there or cannot be written to")
    if not 0 <= rate <= 1:
        raise InvalidArgument(f"{place}: sampling_config.sampling_rate={rate:g}: expected 0 to 1")
    return RequestLogging(prefix, rate)


def check_labels(
    wanted: Sequence[ModelConfig],
    served: Sequence[ModelConfig],
    available: Callable[[str], Collection[int]],
    *,
    allow_unavailable: bool,
) -> None:
    """Check that labels lead to versions that answer.

    Args:
        wanted: the models that are asked for.
        served: the models and labels as they are.
        available: gives the available versions of a model.
        allow_unavailable: let a label that is new, or stays where it is, lead to a version that is not there yet;
            one that moves still must not.

    Raises:
        FailedPrecondition: a label may not lead where it is to lead.
    """
    before = {config.name: config.labels for config in served}
    for config in wanted:
        for label, version in sorted(config.labels.items()):
            moves = before.get(config.name, {}).get(label, version) != version
            if (moves or not allow_unavailable) and version not in available(config.name):
                raise FailedPrecondition(
                    f"Request to assign label to version {version} of model {config.name}, which is not currently "
                    "available for inference"
                )
