"""`moxserve deploy`: manifests for KServe, Kubernetes and docker-compose."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import click

from moxserve.errors import UsageError

__all__ = ["deploy"]

_OPTIONS = (
    click.option(
        "--model", "models", multiple=True, metavar="NAME=PLACE",
        help="A model, and where the directory with its versions is: pvc://claim/path, a directory, or (kserve, or the "
        "C++ server) gs://... or s3://.... Several times for several models.",
    ),
    click.option(
        "--model-config-file", metavar="FILE",
        help="ModelServerConfig instead of --model, with base paths as the container sees them.",
    ),
    click.option(
        "--mount", "mounts", multiple=True, metavar="PLACE=PATH",
        help="What is at a path inside the container, for the base paths of --model-config-file.",
    ),
    click.option("--name", metavar="TEXT", help="Name of what is made.  [default: that of the only model]"),
    click.option(
        "--engine", default="moxserve", metavar="ENGINE",
        help="moxserve, or tensorflow_model_server: TensorFlow Serving's image, with the same flags.",
        show_default=True,
    ),
    click.option("--image", default="", metavar="IMAGE", help="Image to run.  [default: the engine's]"),
    click.option("--replicas", default=1, show_default=True, help="How many servers."),
    click.option("--max-replicas", default=0, help="Up to how many load may raise that."),
    click.option("--cpu", default="2", show_default=True, metavar="QUANTITY", help="CPUs of each: 2, 500m."),
    click.option("--memory", default="4Gi", show_default=True, metavar="QUANTITY", help="Memory of each."),
    click.option("--gpus", default=0, help="NVIDIA GPUs of each."),
    click.option("--namespace", default="", metavar="TEXT", help="Namespace to write into the manifests."),
    click.option("--out", default="-", metavar="FILE", help="File to write, all or nothing.  [default: stdout]"),
    click.argument("serve_flags", nargs=-1, metavar="[-- FLAGS OF MOXSERVE SERVE]", type=click.UNPROCESSED),
)  # fmt: skip


def _common(function: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.group()
def deploy() -> None:
    """Write manifests that run a model server elsewhere.

    Nothing is applied or started: look at what is written, then hand it to kubectl or docker compose.
    """


@deploy.command(short_help="ConfigMap, Deployment, Service, autoscaler.")
@_common
def kubernetes(**values: Any) -> None:
    """ConfigMap, Deployment and Service, and an autoscaler with --max-replicas."""
    from moxserve.deploy.kubernetes import documents

    _write(documents(_deployment(values)), values["out"])


@deploy.command()
@click.option(
    "--protocol", type=click.Choice(["rest", "grpc"]), default="rest", show_default=True,
    help="What the service speaks: KServe gives it one port.",
)  # fmt: skip
@_common
def kserve(protocol: str, **values: Any) -> None:
    """An InferenceService of KServe for one model."""
    from moxserve.deploy.kserve import documents

    _write(documents(_deployment(values), protocol), values["out"])


@deploy.command("docker-compose")
@_common
def docker_compose(**values: Any) -> None:
    """A file for docker compose."""
    from moxserve.deploy.compose import document

    made = document(_deployment(values))
    for service in made["services"].values():
        for volume in service["volumes"]:
            if not os.path.isdir(volume["source"]):
                click.echo(f"note: there is no directory {volume['source']} on this machine", err=True)
    _write([made], values["out"])


def _deployment(values: Mapping[str, Any]) -> Any:
    from moxserve.deploy.spec import Deployment, Resources

    models = _pairs(values["models"], "--model", "NAME=PLACE")
    mounts = {path: place for place, path in _pairs(values["mounts"], "--mount", "PLACE=PATH").items()}
    flags, unknown = _serve_flags(values["serve_flags"])
    name = values["name"]
    if name is None:
        if not models and not values["model_config_file"]:
            raise UsageError(
                "there is no model", hint="give --model NAME=PLACE, or --model-config-file FILE and --name"
            )
        if len(models) != 1:
            raise UsageError("--name is missing", hint="it names what is made, such as --name=model-server")
        (name,) = models
    deployment = Deployment(
        name=name,
        models=models,
        config_file=values["model_config_file"] or "",
        mounts=mounts,
        engine=values["engine"],
        image=values["image"],
        flags=flags,
        unknown=unknown,
        replicas=values["replicas"],
        max_replicas=values["max_replicas"],
        resources=Resources(values["cpu"], values["memory"], values["gpus"]),
        namespace=values["namespace"],
    )
    for warning in deployment.warnings:
        click.echo(f"note: {warning}", err=True)
    return deployment


def _pairs(given: tuple[str, ...], option: str, form: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in given:
        # A place may hold "=", a name or a path inside the container does not.
        left, separator, right = text.rpartition("=") if option == "--mount" else text.partition("=")
        if not (left and separator and right):
            raise UsageError(f"{option} {text}: expected {form}")
        if left in pairs:
            raise UsageError(f"{option} {left} is given twice")
        pairs[left] = right
    return pairs


def _serve_flags(arguments: tuple[str, ...]) -> tuple[dict[str, Any], list[str]]:
    """Read flags of `moxserve serve` as it does itself; returns those that were given, and what it does not know."""
    from moxserve.cli.serve import given_flags, serve
    from moxserve.serving.options import from_flags

    context = serve.make_context("serve", list(arguments))
    from_flags(context.params)  # what contradicts itself is told here, not by a container that does not start
    return {name: context.params[name] for name in given_flags(context)}, context.args


def _write(documents: list[dict[str, Any]], out: str) -> None:
    import yaml

    from moxserve import file

    text = yaml.dump_all(documents, Dumper=_dumper(), sort_keys=False, width=120, allow_unicode=True)
    if out == "-":
        click.echo(text, nl=False)
        return
    file.write(out, text)
    click.echo(f"wrote {out}", err=True)


def _dumper() -> Any:
    """Return a YAML writer that keeps the lines of a text, and writes a value that turns up twice twice."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML gives it
            return True

    def text(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return Dumper
