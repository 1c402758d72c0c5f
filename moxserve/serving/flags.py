"""The flags of `moxserve serve`: one table for the command line, the help page, the docs and the warnings.

Names, types and defaults are tensorflow_model_server's. A flag whose `state` is `refused` keeps the server from
starting, since a server without it would not be what was asked for; one that is `ignored` means nothing to this server:
it is accepted, so that an existing command line starts, and warned about by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["FLAGS", "Flag"]


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag.

    Attributes:
        name: with underscores, as tensorflow_model_server has it.
        kind: `int`, `float`, `str` or `bool`.
        default: value when it is not given.
        group: heading on the help page.
        help: what it does, in one line.
        state: `works`, `refused`, or `ignored` (accepted with a warning).
        ours: whether tensorflow_model_server does not know it.
        repeats: whether it may be given several times, each adding to the others.
        form: what a value looks like, on the help page; empty for the name of the kind.
    """

    name: str
    kind: str
    default: Any
    group: str
    help: str
    state: str = "works"
    ours: bool = False
    repeats: bool = False
    form: str = ""


_MODEL, _NET, _SEE, _PROCESS, _BATCH, _LOAD, _TF, _REFUSED, _IGNORED = (
    "Models",
    "Addresses and transports",
    "Watching",
    "Processes",
    "Batching and overload",
    "Versions, loading and warmup",
    "TensorFlow",
    "Refused: the server does not start with them",
    "Accepted, without meaning here (a warning tells)",
)


def _refused(name: str, kind: str, default: Any, what: str) -> Flag:
    return Flag(name, kind, default, _REFUSED, what, "refused")


def _ignored(name: str, kind: str, default: Any, what: str) -> Flag:
    return Flag(name, kind, default, _IGNORED, what, "ignored")


FLAGS: tuple[Flag, ...] = (
    Flag("model_name", "str", "default", _MODEL, "Name that requests use."),
    Flag("model_base_path", "str", "", _MODEL, "Directory that holds the version directories, such as BASE/1."),
    Flag(
        "model", "str", "", _MODEL, "One of several models, and its base path; give it again for each.",
        ours=True, repeats=True, form="NAME=PATH",
    ),
    Flag(
        "model_config_file", "str", "", _MODEL,
        "ModelServerConfig in protobuf text: models, policies, labels. The flags above are ignored then.",
    ),
    Flag("model_config_file_poll_wait_seconds", "int", 0, _MODEL, "Read that file again this often; 0 for never."),
    Flag(
        "model_config_reload_wait_seconds", "float", 10.0, _MODEL,
        "How long a new model of a reload may have no version to load before the reload is refused.", ours=True,
    ),
    Flag(
        "allow_version_labels_for_unavailable_models", "bool", False, _MODEL,
        "Let new labels lead to versions that are not loaded yet.",
    ),
    Flag(
        "backend", "str", "", _MODEL,
        "What runs models: auto, the default (the fastest right form that a directory holds), tensorflow, onnx, "
        "openvino or tflite; MODEL=BACKEND for one model, and again for more.", ours=True, repeats=True,
        form="[MODEL=]BACKEND",
    ),
    Flag("prefer_tflite_model", "bool", False, _MODEL, "Serve model.tflite where a version directory has one."),
    Flag("num_tflite_pools", "int", 0, _MODEL, "Requests at once on a TFLite model; 0 takes one a CPU."),
    Flag(
        "num_tflite_interpreters_per_pool", "int", 1, _MODEL,
        "Above 1, large batches for a TFLite model are cut into pieces that run side by side, so many at once.",
    ),
    Flag("saved_model_tags", "str", "serve", _MODEL, "Tag set of the MetaGraph to serve, separated by commas."),
    Flag(
        "enable_signature_method_name_check", "bool", False, _MODEL,
        "Refuse a signature whose method is not the request's; not for TF2, whose signatures all say predict.",
    ),
    Flag("port", "int", 8500, _NET, "gRPC port; 0 for none, then --grpc_socket_path must be given."),
    Flag("grpc_socket_path", "str", "", _NET, "UNIX socket to listen on for gRPC as well, or instead with --port=0."),
    Flag("rest_api_port", "int", 0, _NET, "HTTP port of the REST API; 0 for none."),
    Flag("host", "str", "", _NET, "Address to bind. Default: all, 0.0.0.0 for gRPC and [::] for HTTP.", ours=True),
    Flag("grpc_max_threads", "int", 0, _NET, "Runs of a version at once; 0 takes one a CPU."),
    Flag("rest_api_num_threads", "int", 0, _NET, "Large bodies read or written at once; 0 takes one a CPU."),
    Flag("rest_api_timeout_in_ms", "int", 30000, _NET, "Time limit of a REST inference, then 504; 0 or less for none."),
    Flag("rest_api_enable_cors_support", "bool", False, _NET, "Let web pages of other origins read REST answers."),
    Flag("grpc_channel_arguments", "str", "", _NET, "gRPC's own arguments: key=value,key=value."),
    Flag("ssl_config_file", "str", "", _NET, "SSLConfig file: TLS for gRPC, with or without clients' certificates."),
    Flag("monitoring_config_file", "str", "", _NET, "MonitoringConfig file: a page of metrics for Prometheus."),
    Flag(
        "enable_grpc_reflection", "bool", True, _NET,
        "Let tools such as grpcurl ask the gRPC port which services and messages it has.", ours=True,
    ),
    Flag("enable_grpc_healthcheck_service", "bool", False, _NET, "Offer grpc.health.v1.Health, also for each model."),
    Flag(
        "enable_serialization_as_tensor_content", "bool", False, _NET,
        "Answer gRPC Predict with tensor_content instead of the typed fields: faster to write and to read.",
    ),
    Flag("shutdown_grace_seconds", "float", 25.0, _NET, "How long SIGTERM lets requests finish.", ours=True),
    Flag(
        "status_page", "bool", True, _SEE,
        "Show models, states and latencies at / of the REST port, with a form for a sample request.", ours=True,
    ),
    Flag(
        "access_log", "str", "", _SEE, "File that gets a line of JSON for each request; - is stdout.", ours=True,
    ),
    Flag(
        "otel", "bool", False, _SEE,
        "Tell each request to OpenTelemetry; its OTEL_* variables say where, by default http://localhost:4318.",
        ours=True,
    ),
    Flag("enable_profiler", "bool", True, _SEE, "TensorFlow's profiler service on the gRPC port."),
    Flag(
        "num_processes", "int", 1, _PROCESS,
        "Server processes behind the same ports, for machines with more cores.", ours=True,
    ),
    Flag(
        "engine", "str", "moxserve", _PROCESS,
        "moxserve, or tensorflow_model_server: the C++ server on PATH, with these flags.", ours=True,
    ),
    Flag(
        "enable_batching", "bool", False, _BATCH,
        "Run requests that wait together. Without the next two flags the sizes are learned from the load.",
    ),
    Flag("batching_parameters_file", "str", "", _BATCH, "BatchingParameters in protobuf text: sizes and times."),
    Flag(
        "enable_per_model_batching_parameters", "bool", False, _BATCH,
        "Take sizes and times from batching_params.pbtxt of each version directory; without one, run unbatched.",
    ),
    Flag(
        "max_queue_delay_ms", "float", 0.0, _BATCH,
        "Refuse a request that would wait longer for its turn, by how fast the model is; 0 for any.", ours=True,
    ),
    Flag(
        "serve_while_loading", "bool", False, _LOAD,
        "Open the ports at once; what is not loaded yet is UNAVAILABLE, and the server not ready.", ours=True,
    ),
    Flag("file_system_poll_wait_seconds", "int", 1, _LOAD, "Time between two looks for versions; 0 looks once."),
    Flag("max_num_load_retries", "int", 5, _LOAD, "Attempts to load a version after a first failed one."),
    Flag("load_retry_interval_micros", "int", 60_000_000, _LOAD, "Pause between two attempts."),
    Flag("num_load_threads", "int", 0, _LOAD, "Versions loaded at once; 0 takes one a CPU."),
    Flag("enable_model_warmup", "bool", True, _LOAD, "Replay assets.extra/tf_serving_warmup_requests before serving."),
    Flag("num_request_iterations_for_warmup", "int", 0, _LOAD, "How often each warmup record is run; 0 is once."),
    Flag("tensorflow_session_parallelism", "int", 0, _TF, "Threads of a session, inside and across operations."),
    Flag("tensorflow_intra_op_parallelism", "int", 0, _TF, "Threads inside one operation; 0 lets TensorFlow decide."),
    Flag("tensorflow_inter_op_parallelism", "int", 0, _TF, "Operations at once; 0 lets TensorFlow decide."),
    Flag("per_process_gpu_memory_fraction", "float", 0.0, _TF, "GPU memory to take at once; 0: TensorFlow decides."),
    Flag(
        "tensorflow_session_config_file", "str", "", _TF,
        "ConfigProto in text for sessions; the four flags above overwrite its fields.",
    ),
    Flag("mixed_precision", "str", "", _TF, "bfloat16: let TensorFlow compute in it on CPUs that can."),
    Flag(
        "freeze_on_load", "bool", False, _TF,
        "Turn variables that no signature can change into constants: faster, and more memory.", ours=True,
    ),
    Flag(
        "op_library", "str", "", _TF,
        "Shared object with custom operations to load before the first model; may be given several times.",
        ours=True, repeats=True, form="FILE",
    ),
    Flag(
        "load_op_libraries", "bool", False, _TF,
        "Also load the custom operations that a version brings with it: native code, run with the server's rights, by "
        "whoever may write into the model directory.", ours=True,
    ),
    Flag(
        "platform_config_file", "str", "", _TF,
        "PlatformConfigMap in text; replaces all flags on sessions, batching, warmup, tags and TFLite.",
    ),
    _refused("use_alts_credentials", "bool", False, "Google's ALTS for gRPC."),
    _ignored("num_unload_threads", "int", 0, "Unloads at once; each has a thread of its own here."),
    _ignored("flush_filesystem_caches", "bool", True, "Caches of TensorFlow's file systems."),
    _ignored("remove_unused_fields_from_bundle_metagraph", "bool", True, "Only signatures are kept here, always."),
    _ignored("xla_cpu_compilation_enabled", "bool", False, "XLA on the CPU."),
    _ignored("xla_gpu_compilation_enabled", "bool", False, "XLA on the GPU."),
    _ignored("skip_initialize_tpu", "bool", False, "TPU."),
    _ignored("thread_pool_factory_config_file", "str", "", "Thread pool factories of the C++ server."),
)  # fmt: skip
