"""`moxserve serve`: the command line of the model server."""

from __future__ import annotations

import difflib
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import click

from moxserve.serving.flags import FLAGS, Flag

__all__ = ["serve"]

logger = logging.getLogger("moxserve.serve")

_LOG_FORMAT = "%(asctime)s %(levelname).1s %(name)s] %(message)s"


class _Bool(click.ParamType[bool]):
    """`--flag`, `--flag=true` and `--flag=false`, as tensorflow_model_server reads them."""

    name = "true|false"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        if isinstance(value, bool):
            return value
        if value not in ("true", "false"):
            self.fail(f"{value!r} is neither true nor false", param, ctx)
        return bool(value == "true")


class _Serve(click.Command):
    """A command whose options come from the table of flags, under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click gives it
        """Write the options group by group."""
        for group, flags in groupby(FLAGS, key=lambda f: f.group):
            rows = [(f"--{f.name}{_metavar(f)}", _help(f)) for f in flags]
            with formatter.section(group):
                formatter.write_dl(rows)
        with formatter.section("Other"):
            formatter.write_dl(
                [("--version", "Show the versions of the server and of TensorFlow."), ("-h, --help", "Show this page.")]
            )


def _metavar(flag: Flag) -> str:
    return "" if flag.kind == "bool" else f"={flag.kind.upper()}"


def _help(flag: Flag) -> str:
    default = str(flag.default).lower() if flag.kind == "bool" else str(flag.default)
    return flag.help if flag.default in ("", 0) and flag.kind != "bool" else f"{flag.help} [default: {default}]"


def _options() -> list[click.Option]:
    types: Mapping[str, Any] = {"int": click.INT, "float": click.FLOAT, "str": click.STRING, "bool": _Bool()}
    options = []
    for flag in FLAGS:
        extra: dict[str, Any] = {"default": flag.default}
        if flag.kind == "bool":
            extra |= {"is_flag": False, "flag_value": "true"}
        elif flag.repeats:
            extra = {"multiple": True}
        options.append(click.Option([f"--{flag.name}"], type=types[flag.kind], **extra))
    options.append(click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version))
    return options


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001 - click gives it
    if not value:
        return
    from importlib import metadata

    from moxserve import __version__

    try:
        library = metadata.version("tensorflow")
    except metadata.PackageNotFoundError:
        library = "not installed"
    click.echo(f"TensorFlow ModelServer: moxserve {__version__}")
    click.echo(f"TensorFlow Library: {library}")
    ctx.exit(0)


@click.pass_context
def _run(ctx: click.Context, /, **values: Any) -> None:
    from moxserve.serving.options import from_flags

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=_LOG_FORMAT)
    # TensorFlow's own notes on CPU features, missing GPUs and restored files would bury the server's log.
    logging.getLogger("tensorflow").setLevel(logging.WARNING)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    _warn_unknown(ctx.args)
    _warn_not_in_effect(ctx)
    options = from_flags(values)
    options.models()
    serve_until_signal(options)


def _warn_unknown(arguments: list[str]) -> None:
    known = [flag.name for flag in FLAGS]
    for argument in arguments:
        if not argument.startswith("-"):
            logger.warning("unexpected argument %r is ignored", argument)
            continue
        name = argument.lstrip("-").partition("=")[0].replace("-", "_")
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean --{near[0]}?" if near else ""
        logger.warning("unknown flag --%s is ignored%s", name, hint)


def _warn_not_in_effect(ctx: click.Context) -> None:
    for flag in FLAGS:
        if ctx.get_parameter_source(flag.name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        if flag.state == "later":
            logger.warning(
                "--%s is accepted but not in effect: this version of moxserve does not have it yet", flag.name
            )
        elif flag.state == "ignored":
            logger.warning("--%s is accepted but means nothing to this server (%s)", flag.name, flag.help.rstrip("."))


def serve_until_signal(options: Any) -> None:
    """Run a server until SIGTERM or SIGINT, then let its requests finish; a second signal ends it at once.

    Args:
        options: ServerOptions.

    Raises:
        MoxserveError: the server could not start.
    """
    from moxserve.serving.main import Server

    server = Server(options)
    asked = threading.Event()

    def ask(signum: int, frame: object) -> None:  # noqa: ARG001 - the signature of a handler
        if asked.is_set():
            os._exit(128 + signum)
        asked.set()
        # Not here: a handler interrupts whatever holds a lock that stopping needs.
        threading.Thread(target=_stop, args=(server, signum), name="moxserve-stop").start()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, ask)
    try:
        server.start()
    except Exception:
        if not asked.is_set():
            raise
        logger.debug("the start ended because the server was told to stop", exc_info=True)
    while not server.wait(0.5):
        pass


def _stop(server: Any, signum: int) -> None:
    logger.info("%s: no new requests are taken; those in flight may finish", signal.Signals(signum).name)
    if server.stop():
        logger.info("all requests finished, all models are unloaded")
        return
    logger.warning("some requests or loads did not finish within the grace period; they are cut off")
    logging.shutdown()
    # Threads that still work would keep the interpreter from ending.
    os._exit(0)


serve = _Serve(
    "serve",
    params=list(_options()),
    callback=_run,
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("-", "_"),
        "max_content_width": 120,
    },
    help="Serve a model over gRPC and REST: a drop-in for tensorflow_model_server.\n\n"
    "Flags are tensorflow_model_server's; --flag=value and --flag value both work, dashes may stand for underscores. "
    "Unknown flags are warned about and ignored.",
    epilog="\b\nExample:\n  moxserve serve --model_name=digits --model_base_path=models/digits "
    "--port=8500 --rest_api_port=8501",
)
