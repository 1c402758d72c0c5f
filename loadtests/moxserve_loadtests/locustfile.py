"""For locust's own command line and web page:

    locust -f loadtests/moxserve_loadtests/locustfile.py --host grpc://localhost:8500 --model digits \\
        -u 8 -t 10s --headless

`--host` takes grpc://HOST:PORT or http://HOST:PORT. The payloads are prepared when a test starts.
"""

from __future__ import annotations

import logging
from typing import Any

import gevent
from locust import events
from locust.runners import MasterRunner

from moxserve.errors import MoxserveError
from moxserve_loadtests.plan import LoadSpec, prepare
from moxserve_loadtests.users import PlanUser

logger = logging.getLogger(__name__)


class ModelUser(PlanUser):
    """A user of the model that the command line names, over gRPC or REST as `--host` says."""


@events.init_command_line_parser.add_listener
def add_arguments(parser: Any) -> None:
    """Add our options to locust's."""
    group = parser.add_argument_group("moxserve")
    group.add_argument("--model", env_var="MOXSERVE_MODEL", default="default", help="NAME[:VERSION|@LABEL]")
    group.add_argument("--signature", default="serving_default", help="key of the signature")
    group.add_argument("--batch-size", type=int, default=1, help="rows a request")
    group.add_argument("--input", default="", help="data set that the rows come from; without it random data is sent")


@events.init.add_listener
def look_at_the_clock(**_: Any) -> None:
    """Let `-t` count from now: gevent's clock stood still while all this was imported."""
    gevent.get_hub().loop.update_now()


@events.test_start.add_listener
def prepare_plan(environment: Any, **_: Any) -> None:
    """Build the payloads before the first user starts; workers know host and options only from here on."""
    if isinstance(environment.runner, MasterRunner):
        return
    options = environment.parsed_options
    try:
        ModelUser.plan = prepare(
            LoadSpec(
                environment.host or "grpc://localhost:8500",
                options.model,
                options.signature,
                options.batch_size,
                options.input or None,
            )
        )
    except MoxserveError as error:
        logger.error("%s", error)
        environment.process_exit_code = error.exit_code
        environment.runner.quit()
