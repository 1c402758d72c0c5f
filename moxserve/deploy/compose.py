"""docker-compose: one service, its configuration inside the file."""

from __future__ import annotations

import os
from typing import Any

from moxserve.deploy.engine import BINARY
from moxserve.deploy.spec import CONFIG_DIR, GRPC_PORT, REST_PORT, Deployment, arguments, command, files, volumes
from moxserve.errors import UsageError

__all__ = ["document"]


def document(deployment: Deployment) -> dict[str, Any]:
    """Return the compose file.

    Raises:
        UsageError: the deployment asks for what compose or the engine cannot do.
    """
    if deployment.max_replicas:
        raise UsageError("--max-replicas: docker-compose does not scale by load", hint="deploy to kubernetes or kserve")
    if deployment.namespace:
        raise UsageError("--namespace: docker-compose has none")
    contents = files(deployment)
    configs = {name.replace(".", "-"): (name, text) for name, text in contents.items()}
    service: dict[str, Any] = {
        "image": deployment.image_name,
        "entrypoint": command(deployment),
        # `$` is a variable to compose.
        "command": [argument.replace("$", "$$") for argument in arguments(deployment)],
        "ports": _ports(deployment),
        "volumes": _volumes(deployment),
        "configs": [{"source": source, "target": f"{CONFIG_DIR}/{name}"} for source, (name, _) in configs.items()],
        "restart": "unless-stopped",
        "stop_grace_period": f"{deployment.grace_s}s",
        "deploy": _deploy(deployment),
    }
    if deployment.engine != BINARY:
        service["healthcheck"] = _healthcheck()
    return {
        "name": deployment.name,
        "services": {deployment.name: service},
        "configs": {source: {"content": text.replace("$", "$$")} for source, (_, text) in configs.items()},
    }


def _ports(deployment: Deployment) -> list[str]:
    # Several containers cannot have one port of the machine: the system chooses.
    fixed = deployment.replicas == 1
    return [f"{port}:{port}" if fixed else str(port) for port in (GRPC_PORT, REST_PORT)]


def _volumes(deployment: Deployment) -> list[dict[str, Any]]:
    mounted = []
    for volume in volumes(deployment):
        if volume.kind != "host":
            raise UsageError(
                f"pvc://{volume.source}: docker-compose has no claims", hint="name a directory of this machine"
            )
        source = os.path.abspath(volume.source)
        mounted.append({"type": "bind", "source": source, "target": volume.mount_path, "read_only": True})
    return mounted


def _healthcheck() -> dict[str, Any]:
    # The image has Python, but no curl.
    look = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{REST_PORT}/v2/health/ready', timeout=3)"
    return {"test": ["CMD", "python", "-c", look], "interval": "10s", "timeout": "5s", "start_period": "120s"}


def _deploy(deployment: Deployment) -> dict[str, Any]:
    limits = {"memory": _bytes(deployment.resources.memory)}
    reservations: dict[str, Any] = {"memory": limits["memory"]}
    if deployment.resources.gpus:
        gpu = {"driver": "nvidia", "count": deployment.resources.gpus, "capabilities": ["gpu"]}
        reservations["devices"] = [gpu]
    return {"replicas": deployment.replicas, "resources": {"limits": limits, "reservations": reservations}}


def _bytes(quantity: str) -> str:
    """Return a quantity of Kubernetes as compose writes it: `4Gi` is `4g` there, `4G` has no name of its own."""
    if quantity.endswith("i"):
        return quantity[:-1].lower()
    digits = quantity.rstrip("kMGTPm")
    factor = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "m": 1}[quantity[len(digits) :]]
    return f"{round(float(digits) * factor)}b"
