"""KServe: one InferenceService for one model.

The C++ server is KServe's own `tensorflow` model format; moxserve is a custom container, to which KServe copies the
model as it does for its own. KServe's routes are those of TensorFlow Serving (v1) and of the Open Inference Protocol
(v2); moxserve answers both, on one port. A service of KServe has one port: REST, or gRPC with `protocol="grpc"`.
"""

from __future__ import annotations

from typing import Any

from moxserve.deploy.engine import BINARY
from moxserve.deploy.kubernetes import quantities
from moxserve.deploy.spec import GRPC_PORT, REST_PORT, Deployment, files, further
from moxserve.errors import UsageError

__all__ = ["documents"]

_MOUNT = "/mnt/models"
_READY = {"httpGet": {"path": "/v2/health/ready", "port": REST_PORT}}
_SCHEMES = ("pvc", "s3", "gs", "hdfs", "webhdfs", "http", "https", "hf", "oci")


def documents(deployment: Deployment, protocol: str = "rest") -> list[dict[str, Any]]:
    """Return the manifests.

    Args:
        deployment: one model, at a place that KServe can copy from.
        protocol: `rest` or `grpc`.

    Raises:
        UsageError: the deployment asks for what KServe or the engine cannot do.
    """
    name, place = _model(deployment)
    if len(files(deployment)) > 1:
        raise UsageError(
            "flags that name a file: an InferenceService has nowhere to put it", hint="use moxserve deploy kubernetes"
        )
    if deployment.engine == BINARY:
        predictor = _tensorflow(deployment, name, place, protocol)
    else:
        predictor = _custom(deployment, name, place, protocol)
    predictor |= {"minReplicas": deployment.replicas, "maxReplicas": max(deployment.max_replicas, deployment.replicas)}
    metadata: dict[str, Any] = {"name": deployment.name}
    if deployment.namespace:
        metadata["namespace"] = deployment.namespace
    spec = {"predictor": predictor}
    return [{"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": metadata, "spec": spec}]


def _model(deployment: Deployment) -> tuple[str, str]:
    if len(deployment.models) != 1:
        raise UsageError(
            "an InferenceService of KServe serves one model",
            hint="deploy one for each, or use moxserve deploy kubernetes",
        )
    ((name, place),) = deployment.models.items()
    if place.partition("://")[0] not in _SCHEMES or "://" not in place:
        raise UsageError(
            f"--model {name}={place}: KServe cannot reach a directory of this machine",
            hint=f"expected {', '.join(f'{scheme}://...' for scheme in _SCHEMES[:3])}",
        )
    return name, place


def _tensorflow(deployment: Deployment, name: str, place: str, protocol: str) -> dict[str, Any]:
    """Return KServe's own server; its runtime gives the ports and the base path, and the model the service's name."""
    if name != deployment.name:
        raise UsageError(
            f"--model {name}: KServe's own runtime names the model as the service, {deployment.name}",
            hint=f"leave out --name, or call the model {deployment.name}",
        )
    if protocol != "rest":
        raise UsageError(
            "--protocol grpc: KServe's own runtime for TensorFlow serves REST", hint="use --engine moxserve"
        )
    model: dict[str, Any] = {
        "modelFormat": {"name": "tensorflow"},
        "storageUri": place,
        "runtimeVersion": deployment.image_name.rpartition(":")[2],
        "resources": quantities(deployment),
    }
    if deployment.image and not deployment.image.startswith("tensorflow/serving:"):
        raise UsageError(
            f"--image={deployment.image}: KServe's own runtime takes a tag of tensorflow/serving",
            hint="use --image tensorflow/serving:TAG, or moxserve deploy kubernetes for another image",
        )
    if arguments := further(deployment):
        model["args"] = arguments
    return {"model": model}


def _custom(deployment: Deployment, name: str, place: str, protocol: str) -> dict[str, Any]:
    ports = [f"--port={GRPC_PORT}", f"--rest_api_port={REST_PORT}"]
    named = [*ports, f"--model_name={name}", f"--model_base_path={_MOUNT}"]
    port_name, number = ("h2c", GRPC_PORT) if protocol == "grpc" else ("http1", REST_PORT)
    # Over gRPC an open port says it: it opens when the model is loaded.
    ready = {"tcpSocket": {"port": number}} if protocol == "grpc" else _READY
    container = {
        "name": "kserve-container",
        "image": deployment.image_name,
        "command": ["moxserve", "serve"],
        "args": [*named, *further(deployment)],
        # KServe copies what this names to /mnt/models before the server starts.
        "env": [{"name": "STORAGE_URI", "value": place}],
        "ports": [{"name": port_name, "containerPort": number, "protocol": "TCP"}],
        "resources": quantities(deployment),
        "readinessProbe": {**ready, "periodSeconds": 5},
    }
    return {"containers": [container], "terminationGracePeriodSeconds": deployment.grace_s}
