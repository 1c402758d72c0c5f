"""Options of the gRPC transport; importing them does not import gRPC."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from moxserve.errors import UsageError
from moxserve.protocol import textproto

__all__ = ["GrpcOptions", "TlsOptions", "parse_channel_arguments", "read_tls"]

_INT32 = range(-(2**31), 2**31)


@dataclass(frozen=True)
class TlsOptions:
    """Certificates, as PEM texts.

    Attributes:
        server_key: private key of the server.
        server_cert: its certificate, with the chain that leads to an authority.
        custom_ca: authorities that clients' certificates must lead to; empty for those of the system.
        client_verify: whether clients must have a certificate.
    """

    server_key: str = field(repr=False)
    server_cert: str = field(repr=False)
    custom_ca: str = field(default="", repr=False)
    client_verify: bool = False


@dataclass(frozen=True)
class GrpcOptions:
    """How the gRPC server runs.

    Attributes:
        max_threads: runs of a version at once; requests that wait need no thread.
        tensor_content: answer with `tensor_content` instead of the typed fields.
        health: offer the standard health service.
        reflection: let clients ask which services and messages there are.
        channel_arguments: further arguments of gRPC's own, which win over ours.
        tls: certificates, for every address; None to listen in the clear.
    """

    max_threads: int = 8
    tensor_content: bool = False
    health: bool = False
    reflection: bool = True
    channel_arguments: tuple[tuple[str, int | str], ...] = ()
    tls: TlsOptions | None = None


def parse_channel_arguments(text: str) -> tuple[tuple[str, int | str], ...]:
    """Read `key=value,key=value`; a value that is a whole int32 is a number, others are text.

    Raises:
        UsageError: an entry is no `key=value`.
    """
    arguments: list[tuple[str, int | str]] = []
    for entry in filter(None, text.split(",")):
        key, separator, value = entry.partition("=")
        if not key or not separator:
            raise UsageError(
                f"--grpc_channel_arguments: {entry!r} is no key=value",
                hint="for example --grpc_channel_arguments=grpc.max_connection_age_ms=2000,grpc.so_reuseport=1",
            )
        whole = re.fullmatch(r"[+-]?[0-9]+", value) and int(value) in _INT32
        arguments.append((key, int(value) if whole else value))
    return tuple(arguments)


def read_tls(config_file: str) -> TlsOptions:
    """Read an SSLConfig file, and have gRPC try what is in it: the real port opens only when the models are loaded.

    Raises:
        ConfigError: the file is no such text.
        UsageError: it cannot be read, or its keys and certificates do not work.
    """
    config = textproto.read_text(config_file, textproto.ssl_config(), "the TLS configuration")
    for name in ("server_key", "server_cert"):
        if not getattr(config, name):
            raise UsageError(f"{config_file}: {name} is missing; expected the text of a PEM file, not its path")
    if config.client_verify and not config.custom_ca:
        raise UsageError(
            f"{config_file}: client_verify needs custom_ca, the authorities that clients' certificates have"
        )
    tls = TlsOptions(config.server_key, config.server_cert, config.custom_ca, config.client_verify)
    from moxserve.serving.grpc.tls import check

    if not check(tls):
        raise UsageError(
            f"{config_file}: gRPC does not take the key and certificates; its own message above says which",
            hint="expected the texts of PEM files, and a key that belongs to the certificate",
        )
    return tls
