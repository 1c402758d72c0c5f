"""Options of the REST transport; importing them does not import an HTTP server."""

from __future__ import annotations

from dataclasses import dataclass

from moxserve.errors import UsageError
from moxserve.protocol import textproto

__all__ = ["RestOptions", "metrics_path"]

_METRICS_PATH = "/monitoring/prometheus/metrics"


@dataclass(frozen=True)
class RestOptions:
    """How the REST server runs.

    Attributes:
        threads: large bodies read or written at once.
        timeout_s: time limit of an inference, then 504; 0 is none.
        max_body_bytes: largest body after inflating.
        cors: whether web pages of other origins may read the answers.
        metrics_path: of the page that Prometheus reads; empty is none.
        page: whether `/` shows the status page.
    """

    threads: int = 8
    timeout_s: float = 30.0
    max_body_bytes: int = 2**31 - 1
    cors: bool = False
    metrics_path: str = ""
    page: bool = True


def metrics_path(config_file: str) -> str:
    """Read the path of the page of metrics from a MonitoringConfig file.

    Returns:
        The path, by default that of tensorflow_model_server; empty when the file does not enable the page.

    Raises:
        ConfigError: the file is no such text.
        UsageError: it cannot be read, or the path is none.
    """
    config = textproto.read_text(config_file, textproto.monitoring_config(), "the monitoring configuration")
    path: str = config.prometheus_config.path or _METRICS_PATH
    if not path.startswith("/"):
        raise UsageError(f"{config_file}: prometheus_config.path is {path!r}; expected a path that begins with /")
    return path if config.prometheus_config.enable else ""
