"""What is to be deployed, checked, whatever it is deployed to.

A model's place says how its files get to the server:

    pvc://claim/path   a directory on a PersistentVolumeClaim (Kubernetes, KServe)
    gs://... s3://...  an object store: KServe copies it, the C++ server reads what it was built with
    /path or path      a directory of the machine: mounted read-only (docker-compose), a hostPath (Kubernetes)
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from moxserve import __version__, file
from moxserve.deploy.engine import BINARY, config_text, translate, written
from moxserve.errors import UsageError
from moxserve.serving.flags import FLAGS
from moxserve.serving.model_config import read_config_file

__all__ = [
    "CONFIG_DIR",
    "GRPC_PORT",
    "METRICS_PATH",
    "MODELS_DIR",
    "REST_PORT",
    "Deployment",
    "Resources",
    "Volume",
    "arguments",
    "base_paths",
    "check_name",
    "command",
    "files",
    "further",
    "volumes",
]

CONFIG_DIR = "/etc/moxserve"
MODELS_DIR = "/models"
CONFIG_FILE, MONITORING_FILE = "models.config", "monitoring.config"
GRPC_PORT, REST_PORT = 8500, 8501
METRICS_PATH = "/monitoring/prometheus/metrics"

# The last release of TensorFlow Serving that the interface here was compared with.
_IMAGES = {"moxserve": f"moxserve:{__version__}", BINARY: "tensorflow/serving:2.20.0"}
_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_MODEL = re.compile(r"[A-Za-z0-9_][-A-Za-z0-9_.]*")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
# Set by what is written here; the container's inside is nobody else's affair.
_OURS = {
    "port": "leave it out: gRPC is on 8500 there; change what is written to have another port outside",
    "rest_api_port": "leave it out: HTTP is on 8501 there; change what is written to have another port outside",
    "model_name": "give --model NAME=PLACE before the --", "model_base_path": "give --model NAME=PLACE before the --",
    "model": "give --model NAME=PLACE before the --",
    "model_config_file": "give --model-config-file FILE before the --",
    "host": "leave it out: the Service has to reach the container", "engine": "give --engine before the --",
    "monitoring_config_file": "leave it out: the page of metrics is always on",
    "model_config_file_poll_wait_seconds": "leave it out: applying a changed manifest starts new servers",
    "grpc_socket_path": "leave it out: the Service reaches the container by its ports",
    "ssl_config_file": "end TLS at the ingress or in the mesh: its key has no place in a manifest",
}  # fmt: skip
# Flags that name a file: it goes along.
_FILES = ("batching_parameters_file", "tensorflow_session_config_file", "platform_config_file")


@dataclass(frozen=True)
class Resources:
    """What a server may use, as Kubernetes writes quantities.

    Attributes:
        cpu: such as `2` or `500m`.
        memory: such as `4Gi`.
        gpus: NVIDIA GPUs.
    """

    cpu: str = "2"
    memory: str = "4Gi"
    gpus: int = 0


@dataclass(frozen=True)
class Volume:
    """A directory that a server reads models from.

    Attributes:
        name: of the volume.
        kind: `pvc` or `host`.
        source: name of the claim, or path on the host.
        sub_path: directory within the claim; empty for the whole.
        mount_path: where the server sees it.
    """

    name: str
    kind: str
    source: str
    sub_path: str
    mount_path: str


@dataclass(frozen=True)
class Deployment:
    """A server to deploy.

    Attributes:
        name: of everything that is made.
        models: name -> place.
        config_file: ModelServerConfig file instead; its base paths are those inside the container.
        mounts: path inside the container -> place, for the models of that file.
        engine: `moxserve` or `tensorflow_model_server`.
        image: empty takes the engine's own.
        flags: name -> value of further flags of `moxserve serve`.
        unknown: further arguments that are no flags of ours, for the C++ server.
        replicas: how many servers.
        max_replicas: up to how many load may raise that; 0 leaves it.
        resources: of each.
        namespace: empty leaves it to whoever applies the manifest.
    """

    name: str
    models: Mapping[str, str] = field(default_factory=dict)
    config_file: str = ""
    mounts: Mapping[str, str] = field(default_factory=dict)
    engine: str = "moxserve"
    image: str = ""
    flags: Mapping[str, Any] = field(default_factory=dict)
    unknown: Sequence[str] = ()
    replicas: int = 1
    max_replicas: int = 0
    resources: Resources = field(default_factory=Resources)
    namespace: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "--name")
        if self.namespace:
            check_name(self.namespace, "--namespace")
        if bool(self.models) == bool(self.config_file):
            raise UsageError("expected either models or a model configuration file", hint="give --model NAME=PLACE")
        if self.mounts and not self.config_file:
            raise UsageError("--mount is for the models of a --model-config-file; --model mounts its own")
        if self.engine not in _IMAGES:
            raise UsageError(f"--engine={self.engine}: expected {' or '.join(_IMAGES)}")
        if self.replicas < 1 or 0 < self.max_replicas < self.replicas:
            raise UsageError(
                f"--replicas={self.replicas} --max-replicas={self.max_replicas}: expected 1 or more, then no fewer"
            )
        for name in ("cpu", "memory"):
            if not _QUANTITY.fullmatch(getattr(self.resources, name)):
                raise UsageError(f"--{name}={getattr(self.resources, name)}: expected a quantity such as 500m or 4Gi")
        for name in self.flags.keys() & _OURS.keys():
            raise UsageError(f"--{name} is not for the flags after --", hint=_OURS[name])
        for name in self.models:
            if not _MODEL.fullmatch(name):
                raise UsageError(f"--model {name}: expected a name of letters, digits, . _ and -")

    @property
    def image_name(self) -> str:
        """The image to run."""
        return self.image or _IMAGES[self.engine]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the engine is not told, one sentence each."""
        return translate(self.flags, self.unknown).warnings if self.engine == BINARY else ()

    @property
    def grace_s(self) -> int:
        """How long a server takes to end."""
        return round(self.flags.get("shutdown_grace_seconds", 25.0)) + 15


def check_name(name: str, flag: str) -> None:
    """Check a name for Kubernetes.

    Args:
        name: to be the name of a Service too, which has the narrowest rules.
        flag: where it comes from.

    Raises:
        UsageError: it is none; proposes the nearest one.
    """
    if _LABEL.fullmatch(name):
        return
    near = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    near = (near if near[:1].isalpha() else f"m-{near}")[:63].rstrip("-")
    raise UsageError(
        f"{flag}={name!r} is no name for Kubernetes: expected at most 63 small letters, digits and -, a letter first "
        "and no - last",
        hint=f"try --name={near}; the model itself may keep its name" if flag == "--name" else f"try {flag}={near}",
    )


def volumes(deployment: Deployment) -> list[Volume]:
    """Return the volumes that hold models; places that need none are left out.

    Raises:
        UsageError: a place is none.
    """
    wanted = {f"{MODELS_DIR}/{name}": place for name, place in deployment.models.items()} | dict(deployment.mounts)
    found = []
    for index, (path, place) in enumerate(wanted.items()):
        scheme, _, rest = place.rpartition("://")
        if not scheme:
            found.append(Volume(f"models-{index}", "host", rest, "", path))
        elif scheme == "pvc":
            claim, _, sub_path = rest.partition("/")
            check_name(claim, "pvc://CLAIM")
            found.append(Volume(f"models-{index}", "pvc", claim, sub_path.strip("/"), path))
        elif path in deployment.mounts:
            raise UsageError(f"--mount {place}={path}: expected a directory or pvc://claim/path")
    return found


def _check_reachable(deployment: Deployment, name: str, base_path: str) -> None:
    if "://" in base_path and deployment.engine == BINARY:
        return
    if not any(f"{base_path}/".startswith(f"{path.rstrip('/')}/") for path in deployment.mounts):
        raise UsageError(
            f"{deployment.config_file}: the base path of {name}, {base_path}, is on no mount",
            hint=f"say what is there, such as --mount pvc://models={MODELS_DIR}",
        )


def base_paths(deployment: Deployment) -> dict[str, str]:
    """Return name -> base path as the server is told it.

    Raises:
        UsageError: the engine cannot read a model where it is.
    """
    mounted = {volume.mount_path for volume in volumes(deployment)}
    paths = {}
    for name, place in deployment.models.items():
        path = f"{MODELS_DIR}/{name}"
        if path not in mounted and deployment.engine != BINARY:
            raise UsageError(
                f"--model {name}={place}: moxserve reads directories only",
                hint="put the model on a volume (pvc://claim/path), or deploy to kserve, which copies it, or use "
                f"--engine {BINARY}",
            )
        paths[name] = path if path in mounted else place
    return paths


def files(deployment: Deployment) -> dict[str, str]:
    """Return name -> content of the files that the server finds in `CONFIG_DIR`.

    Raises:
        ConfigError: the model configuration file is none.
        UsageError: it cannot be read, or names a base path that is not mounted.
    """
    contents = {MONITORING_FILE: f'prometheus_config {{ enable: true, path: "{METRICS_PATH}" }}\n'}
    if deployment.config_file:
        message = read_config_file(deployment.config_file)
        for config in message.model_config_list.config:
            _check_reachable(deployment, config.name, config.base_path)
        contents[CONFIG_FILE] = file.read(deployment.config_file)
    elif len(deployment.models) > 1:
        contents[CONFIG_FILE] = config_text(base_paths(deployment))
    for flag in _FILES:
        if path := deployment.flags.get(flag):
            contents[f"{flag}.txt"] = _content(flag, path)
    return contents


def _content(flag: str, path: str) -> str:
    try:
        content: str = file.read(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--{flag}={path}: {error}", hint="the file goes into the manifest") from None
    return content


def command(deployment: Deployment) -> list[str]:
    """Return the program of the container: as process 1, so that it gets SIGTERM."""
    return [BINARY] if deployment.engine == BINARY else ["moxserve", "serve"]


def arguments(deployment: Deployment) -> list[str]:
    """Return the server's command line inside the container, without its program.

    Raises:
        UsageError: the engine cannot do what a flag asks for, or flags contradict each other.
    """
    named = [f"--port={GRPC_PORT}", f"--rest_api_port={REST_PORT}"]
    if CONFIG_FILE in files(deployment):
        named.append(f"--model_config_file={CONFIG_DIR}/{CONFIG_FILE}")
    else:
        ((name, path),) = base_paths(deployment).items()
        named += [f"--model_name={name}", f"--model_base_path={path}"]
    named.append(f"--monitoring_config_file={CONFIG_DIR}/{MONITORING_FILE}")
    if "enable_grpc_healthcheck_service" not in deployment.flags:
        named.append("--enable_grpc_healthcheck_service=true")
    inside = {flag: f"{CONFIG_DIR}/{flag}.txt" for flag in _FILES if deployment.flags.get(flag)}
    return [*named, *further(replace(deployment, flags={**deployment.flags, **inside}))]


def further(deployment: Deployment) -> list[str]:
    """Return the flags that the user gave, as the engine takes them.

    Raises:
        UsageError: the engine cannot do what one asks for, or does not know it.
    """
    if deployment.engine == BINARY:
        return list(translate(deployment.flags, deployment.unknown).arguments)
    if deployment.unknown:
        first = deployment.unknown[0].lstrip("-").partition("=")[0].replace("-", "_")
        near = difflib.get_close_matches(first, [flag.name for flag in FLAGS], n=1)
        raise UsageError(
            f"moxserve serve does not know {' '.join(deployment.unknown)}",
            hint=f"did you mean --{near[0]}?" if near else "moxserve serve --help lists its flags",
        )
    return [argument for name, value in deployment.flags.items() for argument in written(name, value)]
