"""Take the wire descriptors out of the installed client packages (`python -m moxserve.protocol.extract`).

They are tensorflow-serving-api and, for the Open Inference Protocol, tritonclient. A development tool: it imports
TensorFlow. The result, `descriptors.binpb`, is a FileDescriptorSet with every file that the listed roots need, options
and comments left as the wheels have them. A test keeps file and wheels equal.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from moxserve.file import atomic_write

__all__ = ["DESCRIPTOR_FILE", "ROOTS", "extract"]

DESCRIPTOR_FILE = os.path.join(os.path.dirname(__file__), "descriptors.binpb")

ROOTS = (
    "tensorflow_serving.apis.classification_pb2",
    "tensorflow_serving.apis.get_model_metadata_pb2",
    "tensorflow_serving.apis.get_model_status_pb2",
    "tensorflow_serving.apis.inference_pb2",
    "tensorflow_serving.apis.input_pb2",
    "tensorflow_serving.apis.logging_pb2",
    "tensorflow_serving.apis.model_management_pb2",
    "tensorflow_serving.apis.model_pb2",
    "tensorflow_serving.apis.model_service_pb2",
    "tensorflow_serving.apis.predict_pb2",
    "tensorflow_serving.apis.prediction_log_pb2",
    "tensorflow_serving.apis.prediction_service_pb2",
    "tensorflow_serving.apis.regression_pb2",
    "tensorflow_serving.apis.status_pb2",
    "tensorflow_serving.config.file_system_storage_path_source_pb2",
    "tensorflow_serving.config.log_collector_config_pb2",
    "tensorflow_serving.config.logging_config_pb2",
    "tensorflow_serving.config.model_server_config_pb2",
    "tensorflow.core.example.example_pb2",
    "tensorflow.core.framework.tensor_pb2",
    "tensorflow.core.protobuf.meta_graph_pb2",
    "tensorflow.core.protobuf.saved_model_pb2",
    "tritonclient.grpc.service_pb2",
)


def extract() -> bytes:
    """Return the FileDescriptorSet of all roots and what they import, dependencies first, in a stable order."""
    from google.protobuf import descriptor_pb2

    files: dict[str, Any] = {}

    def add(descriptor: Any) -> None:
        if descriptor.name in files:
            return
        for dependency in descriptor.dependencies:
            add(dependency)
        proto = descriptor_pb2.FileDescriptorProto()
        descriptor.CopyToProto(proto)
        files[descriptor.name] = proto

    for root in ROOTS:
        add(importlib.import_module(root).DESCRIPTOR)
    return descriptor_pb2.FileDescriptorSet(file=files.values()).SerializeToString(deterministic=True)


if __name__ == "__main__":
    atomic_write(DESCRIPTOR_FILE, extract())
