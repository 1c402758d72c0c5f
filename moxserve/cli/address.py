"""Where a server is, as every command that talks to one is told: `--grpc HOST:PORT` or `--rest URL`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["address_options", "grpc_option", "server_target"]

F = TypeVar("F", bound=Callable[..., Any])


def address_options(command: F) -> F:
    """Add `--grpc` (as `grpc_address`) and `--rest` (as `rest_url`) to a command."""
    rest = click.option(
        "--rest",
        "rest_url",
        metavar="URL",
        envvar="MOXSERVE_REST",
        show_envvar=True,
        help="REST address, http://HOST:PORT.",
    )
    return grpc_option(rest(command))


def grpc_option(command: F) -> F:
    """Add only `--grpc` (as `grpc_address`), to a command that REST has nothing for."""
    return click.option(
        "--grpc",
        "grpc_address",
        metavar="HOST:PORT",
        envvar="MOXSERVE_GRPC",
        show_envvar=True,
        help="gRPC address of the server.",
    )(command)


def server_target(grpc_address: str | None, rest_url: str | None) -> str:
    """Turn the one of the two that was given into a target of `moxserve.client.Client`."""
    if rest_url:
        return rest_url if "://" in rest_url else f"http://{rest_url}"
    address = grpc_address or ""
    return address if "://" in address or address.startswith("unix:") else f"grpc://{address}"
