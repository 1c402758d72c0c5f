"""`moxserve models`: what a running server serves, and how to have it serve something else; the networks of the zoo.

What is of the zoo is in `zoo`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from moxserve.cli.address import address_options, grpc_option, server_target
from moxserve.cli.main import LazyGroup

if TYPE_CHECKING:
    from moxserve.client import Client, ListedModel
    from moxserve.errors import RequestError

__all__ = ["models"]

_STATUS_EPILOG = """\b
Examples:
  moxserve models status --grpc localhost:8500
  moxserve models status --rest http://localhost:8501 digits half:3 --json
  moxserve models status --grpc localhost:8500 digits --ready && echo "may take traffic"

\b
Exit codes: 0 told; 1 none of the models is known, or --ready and one of them has no version that
answers; 3 some of the models are not known; 4 server unreachable.
"""

_RELOAD_EPILOG = """\b
Example:
  moxserve models reload models.config --grpc localhost:8500

\b
CONFIG_FILE is a ModelServerConfig in protobuf text, and the whole truth: a model that it leaves out
is unloaded. Returns when every new model answers; a configuration that is refused changes nothing.

\b
Exit codes: 0 in effect; 1 a model could not be loaded, or a label leads nowhere; 2 the file is wrong,
or the server finds that it is; 4 server unreachable.
"""


_ZOO = {
    "list": ("moxserve.cli.zoo:list_networks", "List the networks that training builds by name."),
    "show": ("moxserve.cli.zoo:show_network", "Tell what a network is: size, cost, options, checkpoints that fit."),
    "check": ("moxserve.cli.zoo:check_network", "Tell what of a network a checkpoint gives."),
    "convert": ("moxserve.cli.zoo:convert_weights", "Make a checkpoint of weights that others published."),
}


@click.group(cls=LazyGroup, lazy=_ZOO)
def models() -> None:
    """Show the networks of the model zoo; show and change what a running server serves.

    list, show, check and convert are about networks that training builds by name, and checkpoints for them; status and
    reload ask a server.
    """


_timeout = click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), metavar="S", default=30.0, show_default=True,
    help="Seconds for each answer of the server.",
)  # fmt: skip
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@models.command(epilog=_STATUS_EPILOG)
@address_options
@click.argument("names", nargs=-1, metavar="[MODEL…]")
@click.option("--ready", is_flag=True, help="Exit with 1 unless each model has a version that answers.")
@_timeout
@_json
def status(
    grpc_address: str | None, rest_url: str | None, names: tuple[str, ...], ready: bool, timeout_s: float, as_json: bool
) -> None:
    """Tell versions and states of a server's models.

    MODEL is NAME or NAME:VERSION; without it all models are told. TensorFlow Serving does not list its models: name
    them. Labels are told over REST.
    """
    from moxserve.client import Client
    from moxserve.errors import PartialFailureError

    given = [flag for flag, value in (("--grpc", grpc_address), ("--rest", rest_url)) if value]
    if len(given) != 1:
        raise click.UsageError(f"Give one of --grpc HOST:PORT, --rest URL; got {' and '.join(given) or 'none'}.")
    with Client(server_target(grpc_address, rest_url), timeout_s=timeout_s) as client:
        found, unknown = _named(client, names) if names else (_all(client), [])
    if found or not unknown:
        _show_status(found, as_json=as_json)
    if unknown:
        if not found:
            raise unknown[0]
        told = "; ".join(error.message for error in unknown)
        raise PartialFailureError(f"{len(unknown)} of {len(names)} models are not known: {told}")
    if ready:
        _require_ready(found)


def _all(client: Client) -> list[ListedModel]:
    from moxserve.errors import RequestError

    try:
        return client.models()
    except RequestError as error:
        if error.status == "UNIMPLEMENTED":
            error.hint = "name the models, as in: moxserve models status ... MODEL"
        raise


def _named(client: Client, names: Sequence[str]) -> tuple[list[ListedModel], list[RequestError]]:
    from moxserve.client import ListedModel
    from moxserve.client.flow import model_ref
    from moxserve.errors import RequestError

    labels = _labels(client)
    found, unknown = [], []
    for name in dict.fromkeys(names):
        ref = model_ref(name)
        try:
            found.append(ListedModel(ref.name, labels.get(ref.name), client.status(ref)))
        except RequestError as error:
            if error.status != "NOT_FOUND":
                raise
            unknown.append(error)
    return found, unknown


def _labels(client: Client) -> dict[str, Mapping[str, int]]:
    """Return the labels by model, where they cost one request."""
    from moxserve.errors import RequestError

    if not client.target.startswith("http"):
        return {}
    try:
        return {model.name: model.labels or {} for model in client.models()}
    except RequestError:
        return {}  # TensorFlow Serving lists nothing


def _show_status(found: Sequence[ListedModel], *, as_json: bool) -> None:
    from moxserve.cli.render import echo_json, echo_table

    if as_json:
        echo_json({"models": [_as_json(model) for model in found]})
        return
    if not found:
        click.echo("the server has no models")
        return
    rows = [row for model in found for row in _rows(model)]
    # A column that is empty throughout says nothing.
    columns = ["model", "version", "state", "labels", "error"]
    shown = [i for i, _ in enumerate(columns) if i < 3 or any(row[i] for row in rows)]
    echo_table([columns[i] for i in shown], [[row[i] for i in shown] for row in rows], wrap={"error": 20})


def _as_json(model: ListedModel) -> dict[str, Any]:
    return {"name": model.name, "labels": model.labels, "versions": list(model.versions or ())}


def _rows(model: ListedModel) -> Iterator[list[str]]:
    labels = model.labels or {}
    if not model.versions:
        yield [model.name, "", "no version found", ", ".join(sorted(labels)), ""]
    for known in model.versions or ():
        named = ", ".join(sorted(label for label, version in labels.items() if version == known.version))
        error = "" if known.error_code == "OK" else f"{known.error_code}: {' '.join(known.error_message.split())}"
        yield [model.name, str(known.version), known.state, named, error]


def _require_ready(found: Sequence[ListedModel]) -> None:
    from moxserve.errors import ClientError

    lacking = [model.name for model in found if not _serving(model)]
    if lacking:
        raise ClientError(f"no version answers of: {', '.join(lacking)}")


def _serving(model: ListedModel) -> list[int]:
    return [known.version for known in model.versions or () if known.state == "AVAILABLE"]


@models.command(epilog=_RELOAD_EPILOG)
@click.argument("config_file", metavar="CONFIG_FILE")
@grpc_option
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), metavar="S", default=300.0, show_default=True,
    help="Seconds for the change, the load of new models included.",
)  # fmt: skip
@_json
def reload(config_file: str, grpc_address: str | None, timeout_s: float, as_json: bool) -> None:
    """Have a running server serve what a ModelServerConfig file tells."""
    from moxserve.client import Client
    from moxserve.errors import RequestError, UsageError
    from moxserve.protocol import messages
    from moxserve.protocol.textproto import read_text

    if not grpc_address:
        raise click.UsageError("Missing option '--grpc': the server's gRPC address, HOST:PORT.")
    config = read_text(config_file, messages.ModelServerConfig(), "the model configuration")
    wanted = [entry.name for entry in config.model_config_list.config]
    with Client(server_target(grpc_address, None), timeout_s=min(timeout_s, 30.0)) as client:
        before = _served(client, wanted)
        try:
            client.reload(config, timeout_s=timeout_s)
        except RequestError as error:
            if error.status == "INVALID_ARGUMENT":
                raise UsageError(f"{config_file}: {error.message}", hint=error.hint) from error
            if error.status == "NOT_FOUND":
                error.hint = "base paths are those that the server sees, and need a complete version"
            raise
        after = _served(client, [*wanted, *before])
    _show_change(config, before, after, as_json=as_json)


def _served(client: Client, names: Sequence[str]) -> dict[str, list[int]]:
    """Return the versions that answer, by model: of those in the list of the server, and of those that are named."""
    from moxserve.errors import RequestError

    try:
        return {model.name: _serving(model) for model in client.models()}
    except RequestError:
        pass  # it lists nothing: ask for those that we know of
    found, _ = _named(client, names)
    return {model.name: _serving(model) for model in found}


def _show_change(
    config: Any, before: Mapping[str, list[int]], after: Mapping[str, list[int]], *, as_json: bool
) -> None:
    from moxserve.cli.render import echo_json, echo_table

    entries = {entry.name: dict(entry.version_labels) for entry in config.model_config_list.config}
    changes = []
    for name in dict.fromkeys([*entries, *before]):
        kind = "gone" if name not in entries else "stays" if before.get(name) else "new"
        now = after.get(name, []) if name in entries else []
        changes.append({"model": name, "change": kind, "before": before.get(name, []), "now": now,
                        "labels": entries.get(name, {})})  # fmt: skip
    if as_json:
        echo_json({"changes": changes})
        return
    click.echo("the configuration is in effect")
    rows = [[_cell(change[column]) for column in ("model", "change", "before", "now", "labels")] for change in changes]
    if rows:
        echo_table(["model", "change", "versions before", "now", "labels"], rows)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{label} -> {version}" for label, version in sorted(value.items()))
    return value if isinstance(value, str) else ", ".join(map(str, value))
