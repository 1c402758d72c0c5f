"""What a server can be told, checked once."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from moxserve import file
from moxserve.errors import FailedPrecondition, InvalidArgument, UsageError
from moxserve.protocol import messages
from moxserve.serving.backends.base import LoadOptions
from moxserve.serving.batching.params import BatchingOptions, batching_options
from moxserve.serving.cpus import cpus
from moxserve.serving.flags import FLAGS
from moxserve.serving.grpc.options import GrpcOptions, parse_channel_arguments, read_tls
from moxserve.serving.load_flags import load_options, model_backends
from moxserve.serving.manager import ManagerOptions
from moxserve.serving.model_config import ModelConfig, check_labels, check_names, model_configs, read_config_file
from moxserve.serving.observe import ObserveOptions
from moxserve.serving.platform_config import read_platform_config
from moxserve.serving.reload import ReloadOptions
from moxserve.serving.rest.options import RestOptions, metrics_path

__all__ = ["ServerOptions", "from_flags"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerOptions:
    """A server in one value.

    Attributes:
        model_name: name that requests use.
        model_base_path: directory of the versions; a relative one is taken from the working directory. Empty when the
            models are told by one of the next two.
        more_models: name -> base path of further models.
        config: file with the models and their policies and labels, which then is all that counts; how it is read again.
        grpc_address: `host:port`; port 0 lets the system choose, empty is none.
        grpc_socket_path: UNIX socket for gRPC; empty is none.
        rest_address: `host:port` or `[host]:port` of the REST API; port 0 lets the system choose, empty is none.
        manager: how versions are found and loaded.
        load: how a version is loaded.
        backends: model -> what runs it, where that is not as in `load`.
        grpc: threads and encoding.
        rest: threads and time limit.
        observe: where each request is told.
        profiler: whether gRPC offers TensorFlow's profiler.
        batching: whether and how requests are put together.
        max_queue_delay_s: how long a request may have to wait for its turn before it is refused; 0 for any time.
        check_methods: whether a signature must say that it is of the method that a request asks for.
        warmup: whether recorded requests are replayed before a version is served.
        warmup_iterations: how often each is run.
        serve_while_loading: whether the ports open before the models are loaded.
        shutdown_grace_s: how long `stop` lets requests finish.
        share_ports: whether other server processes listen at the same addresses.
    """

    model_name: str = "default"
    model_base_path: str = ""
    more_models: Mapping[str, str] = field(default_factory=dict)
    config: ReloadOptions = field(default_factory=ReloadOptions)
    grpc_address: str = "127.0.0.1:0"
    grpc_socket_path: str = ""
    rest_address: str = ""
    manager: ManagerOptions = field(default_factory=ManagerOptions)
    load: LoadOptions = field(default_factory=LoadOptions)
    backends: Mapping[str, str] = field(default_factory=dict)
    grpc: GrpcOptions = field(default_factory=GrpcOptions)
    rest: RestOptions = field(default_factory=RestOptions)
    observe: ObserveOptions = field(default_factory=ObserveOptions)
    profiler: bool = True
    batching: BatchingOptions = field(default_factory=BatchingOptions)
    max_queue_delay_s: float = 0.0
    check_methods: bool = False
    warmup: bool = True
    warmup_iterations: int = 1
    serve_while_loading: bool = False
    shutdown_grace_s: float = 25.0
    share_ports: bool = False

    def load_options(self, name: str, platform: str) -> LoadOptions:
        """Return how the versions of a model are loaded.

        Args:
            name: of the model.
            platform: of its configuration.
        """
        return replace(self.load, platform=platform, backend=self.backends.get(name, self.load.backend))

    def models(self) -> list[ModelConfig] | None:
        """Check the options and return the models to serve; None when the file names none yet.

        Raises:
            UsageError: something is missing or contradictory, or the file is wrong.
        """
        if not self.grpc_address and not self.grpc_socket_path:
            raise UsageError(
                "At least one of server_options.grpc_port or server_options.grpc_socket_path must be set.",
                hint="give --port or --grpc_socket_path",
            )
        if self.config.start is not None:
            message = messages.ModelServerConfig.FromString(self.config.start)
            return None if message.WhichOneof("config") is None else model_configs(message)
        if self.config.file:
            return _models_of_file(self.config)
        if not self.model_base_path and not self.more_models:
            raise UsageError(
                "Both server_options.model_base_path and server_options.model_config_file are empty!",
                hint="give --model_base_path=DIR, the directory that holds the version directories, or "
                "--model NAME=DIR for each of several models, or --model_config_file=FILE",
            )
        named = [(self.model_name, self.model_base_path)] if self.model_base_path else []
        named += self.more_models.items()
        if not all(name for name, _ in named):
            raise UsageError("--model_name is empty; expected the name that requests use")
        try:
            check_names([name for name, _ in named])
        except InvalidArgument as error:
            raise UsageError(error.message, hint="give each model a name of its own") from None
        configs = [ModelConfig(name, _absolute(path)) for name, path in named]
        for config in configs:
            file.exists(config.base_path)  # refuses a scheme that has no file engine; the path itself may appear later
        return configs


def _models_of_file(options: ReloadOptions) -> list[ModelConfig] | None:
    message = read_config_file(options.file)
    if message.WhichOneof("config") is None:
        return None
    try:
        configs = model_configs(message)
        check_labels(configs, (), lambda _: (), allow_unavailable=options.allow_unavailable)
    except InvalidArgument as error:
        raise UsageError(f"{options.file}: {error.message}") from None
    except FailedPrecondition as error:
        raise UsageError(
            f"{options.file}: {error.message}",
            hint="start with --allow_version_labels_for_unavailable_models, or set labels by a reload later on",
        ) from None
    return configs


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def from_flags(values: Mapping[str, Any]) -> ServerOptions:
    """Turn the values of `flags.FLAGS` into options.

    Raises:
        UsageError: flags contradict each other or are out of range.
    """
    _check(values)
    platform = read_platform_config(values["platform_config_file"]) if values["platform_config_file"] else None
    values = {**values, **(platform.flags if platform else {})}
    host, port, rest_port = values["host"], values["port"], values["rest_api_port"]
    return ServerOptions(
        model_name=values["model_name"],
        model_base_path=values["model_base_path"],
        more_models=_named_paths(values["model"]),
        config=ReloadOptions(
            file=values["model_config_file"],
            poll_interval_s=values["model_config_file_poll_wait_seconds"],
            wait_s=max(0.0, values["model_config_reload_wait_seconds"]),
            allow_unavailable=values["allow_version_labels_for_unavailable_models"],
        ),
        grpc_address=f"{_bracketed(host or '0.0.0.0')}:{port}" if port else "",
        grpc_socket_path=values["grpc_socket_path"],
        rest_address=f"{_bracketed(host or '::')}:{rest_port}" if rest_port else "",
        manager=ManagerOptions(
            poll_interval_s=values["file_system_poll_wait_seconds"],
            max_load_retries=values["max_num_load_retries"],
            load_retry_interval_s=values["load_retry_interval_micros"] / 1e6,
            load_threads=max(0, values["num_load_threads"]),
        ),
        load=load_options(values, platform),
        backends=model_backends(values["backend"]),
        grpc=_grpc_options(values),
        rest=_rest_options(values),
        observe=ObserveOptions(access_log=values["access_log"], tracing=values["otel"]),
        profiler=values["enable_profiler"],
        batching=batching_options(values, platform.batching if platform else None),
        max_queue_delay_s=max(0.0, values["max_queue_delay_ms"]) / 1e3,
        check_methods=values["enable_signature_method_name_check"],
        warmup=values["enable_model_warmup"],
        warmup_iterations=max(1, values["num_request_iterations_for_warmup"]),
        serve_while_loading=values["serve_while_loading"],
        shutdown_grace_s=max(0.0, values["shutdown_grace_seconds"]),
    )


def _check(values: Mapping[str, Any]) -> None:
    if values["use_alts_credentials"] and values["ssl_config_file"]:
        raise UsageError("Either use_alts_credentials must be false or ssl_config_file must be empty.")
    for flag in FLAGS:
        if flag.state == "refused" and values[flag.name] != flag.default:
            raise UsageError(
                f"--{flag.name}: moxserve does not have it ({flag.help.rstrip('.')}), and a server without it would "
                "not be what you asked for",
                hint="--ssl_config_file gives TLS, with clients' certificates if you like",
            )
    for name in ("port", "rest_api_port"):
        if not 0 <= values[name] <= 65535:
            raise UsageError(f"--{name}={values[name]}: expected a port from 0 to 65535")
    rest_port = values["rest_api_port"]
    if rest_port and rest_port == values["port"]:
        raise UsageError(
            f"--port and --rest_api_port are both {rest_port}; gRPC and HTTP need a port each",
            hint=f"try --rest_api_port={rest_port + 1 if rest_port < 65535 else rest_port - 1}",
        )
    if values["model_config_file"] and values["model"]:
        raise UsageError("--model_config_file and --model: expected one of them; the file names all models itself")


def _grpc_options(values: Mapping[str, Any]) -> GrpcOptions:
    return GrpcOptions(
        max_threads=values["grpc_max_threads"] if values["grpc_max_threads"] > 0 else cpus(),
        tensor_content=values["enable_serialization_as_tensor_content"],
        health=values["enable_grpc_healthcheck_service"],
        reflection=values["enable_grpc_reflection"],
        channel_arguments=parse_channel_arguments(values["grpc_channel_arguments"]),
        tls=read_tls(values["ssl_config_file"]) if values["ssl_config_file"] else None,
    )


def _rest_options(values: Mapping[str, Any]) -> RestOptions:
    return RestOptions(
        threads=values["rest_api_num_threads"] if values["rest_api_num_threads"] > 0 else cpus(),
        timeout_s=max(0, values["rest_api_timeout_in_ms"]) / 1e3,
        cors=values["rest_api_enable_cors_support"],
        metrics_path=_metrics_path(values),
        page=values["status_page"],
    )


def _named_paths(given: Iterable[str]) -> dict[str, str]:
    paths: dict[str, str] = {}
    for text in given:
        name, separator, path = text.partition("=")
        if not (name and separator and path):
            raise UsageError(f"--model={text}: expected NAME=PATH, PATH the directory that holds the versions")
        if name in paths:
            raise UsageError(f"Illegal to list model {name} multiple times in config list", hint="one --model for each")
        paths[name] = path
    return paths


def _metrics_path(values: Mapping[str, Any]) -> str:
    path = values["monitoring_config_file"]
    if not path:
        return ""
    page = metrics_path(path)
    if page and not values["rest_api_port"]:
        logger.warning("--monitoring_config_file=%s: there is no page of metrics without --rest_api_port", path)
    return page


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
