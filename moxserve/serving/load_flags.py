"""The flags that say how a version is loaded: runtime, sessions, threads, TFLite."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from moxserve.errors import UsageError, did_you_mean
from moxserve.protocol import messages
from moxserve.protocol.textproto import read_text
from moxserve.serving.backends.base import LoadOptions, TfliteOptions
from moxserve.serving.platform_config import PlatformConfig

__all__ = ["BACKENDS", "load_options", "model_backends"]

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "tensorflow", "onnx", "openvino", "tflite")


def load_options(values: Mapping[str, Any], platform: PlatformConfig | None) -> LoadOptions:
    """Take from the values of the flags how versions are loaded.

    Args:
        values: with those of `platform` in them already.
        platform: what the platform configuration says; None without one.

    Raises:
        UsageError: flags contradict each other, or a file is wrong.
    """
    intra, inter = _threads(values)
    for name in ("num_tflite_pools", "num_tflite_interpreters_per_pool"):
        if values[name] < 0:
            raise UsageError(f"--{name}={values[name]}: expected 0 or more")
    precision = values["mixed_precision"]
    if precision not in ("", "bfloat16"):
        logger.warning("--mixed_precision=%s is ignored; bfloat16 is the only one that there is", precision)
        precision = ""
    return LoadOptions(
        tags=tuple(tag.strip() for tag in values["saved_model_tags"].split(",") if tag.strip()),
        intra_op_threads=max(0, intra),
        inter_op_threads=max(0, inter),
        gpu_memory_fraction=values["per_process_gpu_memory_fraction"],
        backend=_global_backend(values["backend"]),
        prefer_tflite=values["prefer_tflite_model"],
        tflite=TfliteOptions(values["num_tflite_pools"], max(1, values["num_tflite_interpreters_per_pool"])),
        session_config=platform.session_config if platform else _session_config(values),
        mixed_precision=precision,
        freeze=values["freeze_on_load"],
        op_libraries=tuple(values["op_library"]),
        load_op_libraries=values["load_op_libraries"],
    )


def _threads(values: Mapping[str, Any]) -> tuple[int, int]:
    session = values["tensorflow_session_parallelism"]
    intra, inter = values["tensorflow_intra_op_parallelism"], values["tensorflow_inter_op_parallelism"]
    if session > 0 and intra > 0 and inter > 0:
        raise UsageError(
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, server_options.tensorflow_inter_op_parallelism) "
            "separately. You cannot configure all."
        )
    if intra <= 0 and inter <= 0:
        intra = inter = session
    return intra, inter


def _session_config(values: Mapping[str, Any]) -> bytes:
    path = values["tensorflow_session_config_file"]
    if not path:
        return b""
    config: bytes = read_text(path, messages.ConfigProto(), "the session configuration").SerializeToString()
    return config


def _global_backend(given: Iterable[str]) -> str:
    backend = "auto"
    for text in given:
        if "=" not in text:
            backend = _checked(text, text)
    return backend


def model_backends(given: Iterable[str]) -> dict[str, str]:
    """Return model -> backend of the `--backend` flags that name a model.

    Raises:
        UsageError: there is no such backend, or the name of the model is missing.
    """
    found = {}
    for text in given:
        name, separator, backend = text.rpartition("=")
        if separator and not name:
            raise UsageError(f"--backend={text}: expected BACKEND or MODEL=BACKEND")
        if separator:
            found[name] = _checked(backend, text)
    return found


def _checked(backend: str, text: str) -> str:
    backend = "onnx" if backend == "onnxruntime" else backend
    if backend not in BACKENDS:
        raise UsageError(f"--backend={text}: there is no backend {backend!r}; {did_you_mean(backend, BACKENDS)}")
    return backend
