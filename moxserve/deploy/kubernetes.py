"""Kubernetes: ConfigMap, Deployment, Service, and a HorizontalPodAutoscaler where load may raise the number of servers.

A pod is ready when the health service says so, which both engines offer once a model answers; it is alive while its
port is open, so that a model that is gone takes a pod out of the Service but does not restart it.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

from moxserve.deploy.spec import (
    CONFIG_DIR,
    GRPC_PORT,
    METRICS_PATH,
    REST_PORT,
    Deployment,
    Volume,
    arguments,
    command,
    files,
    volumes,
)
from moxserve.errors import UsageError

__all__ = ["documents", "pod_volumes", "quantities"]

_START_S, _START_TRIES = 5, 120
_DRAIN_S = 5
_TARGET_PERCENT = 70


def documents(deployment: Deployment) -> list[dict[str, Any]]:
    """Return the manifests, in the order in which they are to be applied.

    Raises:
        UsageError: the deployment asks for what Kubernetes or the engine cannot do.
    """
    made = [_config_map(deployment), _deployment(deployment), _service(deployment)]
    if deployment.max_replicas > deployment.replicas:
        made.append(_autoscaler(deployment))
    return made


def _metadata(deployment: Deployment) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": deployment.name}
    if deployment.namespace:
        metadata["namespace"] = deployment.namespace
    return metadata | {"labels": {**_selector(deployment), "app.kubernetes.io/managed-by": "moxserve"}}


def _selector(deployment: Deployment) -> dict[str, str]:
    return {"app.kubernetes.io/name": "model-server", "app.kubernetes.io/instance": deployment.name}


def _config_map(deployment: Deployment) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(deployment), "data": files(deployment)}


def _deployment(deployment: Deployment) -> dict[str, Any]:
    metadata = _metadata(deployment)
    content = repr(sorted(files(deployment).items())).encode()
    annotations = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(REST_PORT),
        "prometheus.io/path": METRICS_PATH,
        # A change of the files alone would start no new pods.
        "moxserve/config": hashlib.sha256(content).hexdigest()[:16],
    }
    spec: dict[str, Any] = {
        "replicas": deployment.replicas,
        "selector": {"matchLabels": _selector(deployment)},
        # A new pod serves before an old one ends.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {
            "metadata": {"labels": metadata["labels"], "annotations": annotations},
            "spec": _pod(deployment),
        },
    }
    if deployment.max_replicas > deployment.replicas:
        del spec["replicas"]  # the autoscaler's; applying the manifest again must not set it back
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def _pod(deployment: Deployment) -> dict[str, Any]:
    mounted = volumes(deployment)
    return {
        "terminationGracePeriodSeconds": deployment.grace_s + _DRAIN_S,
        "containers": [_container(deployment, mounted)],
        "volumes": [{"name": "config", "configMap": {"name": deployment.name}}, *pod_volumes(mounted)],
    }


def _container(deployment: Deployment, mounted: list[Volume]) -> dict[str, Any]:
    return {
        "name": "server",
        "image": deployment.image_name,
        "command": command(deployment),
        "args": arguments(deployment),
        "ports": [
            {"name": "grpc", "containerPort": GRPC_PORT},
            {"name": "http", "containerPort": REST_PORT},
        ],
        "resources": quantities(deployment),
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
            *(_mount(volume) for volume in mounted),
        ],
        **_probes(),
        # Endpoints forget a pod a little after it is told to end: until then it goes on to answer.
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", f"sleep {_DRAIN_S}"]}}},
        "securityContext": _security(deployment),
    }


def _probes() -> dict[str, Any]:
    healthy = {"grpc": {"port": GRPC_PORT}}
    return {
        "startupProbe": {**healthy, "periodSeconds": _START_S, "failureThreshold": _START_TRIES},
        "readinessProbe": {**healthy, "periodSeconds": 5, "timeoutSeconds": 3},
        "livenessProbe": {"tcpSocket": {"port": GRPC_PORT}, "periodSeconds": 10, "timeoutSeconds": 3},
    }


def _security(deployment: Deployment) -> dict[str, Any]:
    security: dict[str, Any] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    if deployment.engine == "moxserve":
        security |= {"runAsNonRoot": True, "runAsUser": 1000}
    return security


def quantities(deployment: Deployment) -> dict[str, Any]:
    """Return what a container asks for and may use.

    Memory is bounded, since a server that takes all would take its neighbours along. CPU is not: what nobody else
    needs may be used, and a bound would stop threads in the middle of a request.
    """
    asked: dict[str, str] = {"cpu": deployment.resources.cpu, "memory": deployment.resources.memory}
    bound = {"memory": deployment.resources.memory}
    if deployment.resources.gpus:
        bound["nvidia.com/gpu"] = str(deployment.resources.gpus)
    return {"requests": asked, "limits": bound}


def pod_volumes(mounted: list[Volume]) -> list[dict[str, Any]]:
    """Return volumes as a pod has them.

    Raises:
        UsageError: a directory of the nodes is told by a relative path.
    """
    for volume in mounted:
        if volume.kind == "host" and not volume.source.startswith("/"):
            raise UsageError(
                f"{volume.source}: a directory of a node has an absolute path",
                hint=f"expected pvc://claim/path, or {os.path.abspath(volume.source)} if every node has that",
            )
    return [
        {"name": volume.name, "persistentVolumeClaim": {"claimName": volume.source, "readOnly": True}}
        if volume.kind == "pvc"
        else {"name": volume.name, "hostPath": {"path": volume.source, "type": "Directory"}}
        for volume in mounted
    ]


def _mount(volume: Volume) -> dict[str, Any]:
    mount: dict[str, Any] = {"name": volume.name, "mountPath": volume.mount_path, "readOnly": True}
    return mount | ({"subPath": volume.sub_path} if volume.sub_path else {})


def _service(deployment: Deployment) -> dict[str, Any]:
    ports = [
        {"name": "grpc", "port": GRPC_PORT, "targetPort": "grpc", "appProtocol": "grpc"},
        {"name": "http", "port": REST_PORT, "targetPort": "http", "appProtocol": "http"},
    ]
    spec = {"selector": _selector(deployment), "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(deployment), "spec": spec}


def _autoscaler(deployment: Deployment) -> dict[str, Any]:
    target = {"type": "Utilization", "averageUtilization": _TARGET_PERCENT}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _metadata(deployment),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment.name},
            "minReplicas": deployment.replicas,
            "maxReplicas": deployment.max_replicas,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        },
    }
