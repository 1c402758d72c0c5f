"""TLS of the gRPC server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from moxserve.serving.grpc.options import TlsOptions

__all__ = ["check", "credentials"]


def credentials(tls: TlsOptions) -> Any:
    """Return gRPC's ServerCredentials."""
    return grpc.ssl_server_credentials(
        [(tls.server_key.encode(), tls.server_cert.encode())],
        root_certificates=tls.custom_ca.encode() or None,
        require_client_auth=tls.client_verify,
    )


def check(tls: TlsOptions) -> bool:
    """Tell whether gRPC takes the key and certificates. It writes to stderr what is wrong with them."""
    # gRPC reads them only when a port is opened.
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        try:
            opened = bool(server.add_secure_port("127.0.0.1:0", credentials(tls)))
        except RuntimeError:
            opened = False
        server.stop(None)
    return opened
