"""What the flags of `moxserve serve` mean for several processes: what is checked once, and what each of them gets."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moxserve.errors import UsageError
from moxserve.serving.model_config import read_config_file
from moxserve.serving.options import ServerOptions, from_flags
from moxserve.serving.processes.supervisor import Plan

__all__ = ["member_options", "plan", "reserve"]


def plan(values: Mapping[str, Any], options: ServerOptions) -> Plan:
    """Check the flags for several processes, and reserve their ports.

    Args:
        values: of all flags.
        options: what they mean.

    Raises:
        UsageError: one makes no sense here.
        Unavailable: a port is taken.
    """
    count = values["num_processes"]
    if count < 1:
        raise UsageError(f"--num_processes={count}: expected 1 or more")
    if not hasattr(socket, "SO_REUSEPORT"):
        raise UsageError("--num_processes: this system has no SO_REUSEPORT, which lets processes share a port")
    if not options.grpc_address:
        raise UsageError(
            f"--num_processes={count}: processes can share a port, but no UNIX socket",
            hint="give --port; the first process listens at --grpc_socket_path as well",
        )
    config = None
    if values["model_config_file"]:
        # Read once: it may change while the processes start, and all of them are to start with the same.
        config = read_config_file(values["model_config_file"]).SerializeToString(deterministic=True)
    ports = [
        reserve(address, flag)
        for flag, address in (("--port", options.grpc_address), ("--rest_api_port", options.rest_address))
        if address
    ]
    return Plan(count, values, config, ports, options.shutdown_grace_s)


def reserve(address: str, flag: str) -> socket.socket:
    """Bind an address that the other processes will share; nobody else gets it while this socket is open.

    Raises:
        UsageError: the address makes no sense.
        Unavailable: it is in use or not ours.
    """
    from moxserve.serving.main import bind

    # Not shared until it is ours: joining another server's port by chance is what sharing must not do.
    sock = bind(address, flag)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return sock


def member_options(flags: Mapping[str, Any], config: bytes | None, index: int) -> ServerOptions:
    """Return the options of one process.

    Args:
        flags: as the supervisor gives them.
        config: ModelServerConfig message to start with; None when flags name the models.
        index: its number, from 0. The first one has the UNIX socket, which cannot be shared.

    Raises:
        UsageError: flags contradict each other or are out of range.
    """
    options = from_flags(flags)
    return replace(
        options,
        config=replace(options.config, file="", start=config),
        grpc=replace(options.grpc, channel_arguments=(*options.grpc.channel_arguments, ("grpc.so_reuseport", 1))),
        grpc_socket_path=options.grpc_socket_path if index == 0 else "",
        share_ports=True,
    )
