"""`moxserve serve --num_processes=N`: the supervisor from the command line to the exit."""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping
from typing import Any

from moxserve.errors import MoxserveError
from moxserve.serving.options import ServerOptions
from moxserve.serving.processes.options import plan
from moxserve.serving.processes.signals import ignore_stop_signals, on_stop_signals
from moxserve.serving.processes.supervisor import Supervisor
from moxserve.serving.reload import ConfigFile

__all__ = ["serve_with_processes"]

logger = logging.getLogger("moxserve.serve")


def serve_with_processes(values: Mapping[str, Any], options: ServerOptions) -> None:
    """Run several server processes until this one is told to stop, then let them finish their requests.

    Args:
        values: of all flags.
        options: what they mean, checked.

    Raises:
        MoxserveError: they could not start, or no longer be kept running.
    """
    supervisor = Supervisor(plan(values, options))
    asked = on_stop_signals(
        lambda signum: _stop(supervisor, signal.Signals(signum).name), supervisor.kill,
        # Nothing to do here: the processes see by themselves that their access log was moved.
        moved=(lambda: None) if options.observe.access_log_file else None,
    )  # fmt: skip

    def reload(message: Any) -> None:
        config = message.SerializeToString(deterministic=True)
        if config != supervisor.config:
            supervisor.reload(config)

    file = ConfigFile(options.config, reload)
    try:
        supervisor.start()
        if not asked.is_set():
            logger.info("%d server processes answer: pids %s", values["num_processes"], supervisor.pids())
            file.start()
    except MoxserveError:
        if not asked.is_set():
            raise
        logger.debug("the start ended because the server was told to stop", exc_info=True)
    supervisor.wait()
    file.stop()
    ignore_stop_signals()


def _stop(supervisor: Supervisor, name: str) -> None:
    logger.info("%s: every server process finishes its requests and ends", name)
    if supervisor.stop():
        logger.info("all server processes have ended")
    else:
        logger.warning("some server processes did not end in time; they were killed")
