"""`moxserve serve`: the command line of the model server."""

from __future__ import annotations

import difflib
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Collection, Mapping
from itertools import groupby
from typing import Any

import click

from moxserve.cli.quiet import verbose
from moxserve.errors import UsageError
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
    return "" if flag.kind == "bool" else f"={flag.form or flag.kind.upper()}"


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
    if values["engine"] != "moxserve":
        _exec_engine(ctx, values)
    # TensorFlow's own notes on CPU features, missing GPUs and restored files would bury the server's log.
    logging.getLogger("tensorflow").setLevel(logging.INFO if verbose() else logging.WARNING)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if verbose() else "2")
    _warn_unknown(ctx.args)
    _warn_ignored(given_flags(ctx))
    options = from_flags(values)
    options.models()
    if values["num_processes"] != 1:
        # The process that keeps the others running needs no TensorFlow.
        from moxserve.serving.processes.run import serve_with_processes

        serve_with_processes(values, options)
        return
    from moxserve.serving.main import Server
    from moxserve.serving.processes.signals import serve_until_signal

    serve_until_signal(Server(options))


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


def given_flags(ctx: click.Context) -> list[str]:
    """Return the names of the flags on the command line, in the order of the table."""
    source = click.core.ParameterSource.COMMANDLINE
    return [flag.name for flag in FLAGS if ctx.get_parameter_source(flag.name) is source]


def _exec_engine(ctx: click.Context, values: Mapping[str, Any]) -> None:
    """Become the C++ server; does not return.

    Raises:
        UsageError: there is no such engine or it is not installed, or a flag asks for what it cannot do.
    """
    from moxserve.deploy.engine import ENGINES, config_text, find_binary, translate
    from moxserve.file import atomic_write
    from moxserve.serving.options import from_flags

    if values["engine"] not in ENGINES:
        raise UsageError(f"--engine={values['engine']}: expected {' or '.join(ENGINES)}")
    options = from_flags(values)
    remote = any("://" in text for text in (values["model_base_path"], *values["model"]))
    if not remote and not values["model_config_file"]:
        options.models()  # what is wrong is told here, in our words; where files may lie is its own affair
    given = given_flags(ctx)
    translation = translate({name: values[name] for name in given}, ctx.args)
    binary = find_binary()
    for warning in translation.warnings:
        logger.warning("%s", warning)
    models = translation.models
    if len(models) == 1:
        ((name, base_path),) = models.items()
        named = [f"--model_name={name}", f"--model_base_path={base_path}"]
    elif models:
        # Not removed again: the server that this process becomes may read it at any time.
        path = os.path.join(tempfile.mkdtemp(prefix="moxserve-engine-"), "models.config")
        atomic_write(path, config_text(models))
        named = [f"--model_config_file={path}"]
    else:
        named = []
    logger.info("becoming %s", shlex.join([binary, *named, *translation.arguments]))
    logging.shutdown()
    os.execv(binary, [binary, *named, *translation.arguments])


def _warn_ignored(given: Collection[str]) -> None:
    for flag in FLAGS:
        if flag.name in given and flag.state == "ignored":
            logger.warning("--%s is accepted but means nothing to this server (%s)", flag.name, flag.help.rstrip("."))


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
    "A flag without a type is --flag, --flag=true or --flag=false. Unknown flags are warned about and ignored.",
    epilog="\b\nExample:\n  moxserve serve --model_name=digits --model_base_path=models/digits \\\n"
    "      --port=8500 --rest_api_port=8501\n\n"
    "Exit codes: 0 stopped by a signal; 1 could not start: a port is taken, or a model failed to load; "
    "2 wrong flags or configuration files.",
)
