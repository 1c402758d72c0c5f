"""Entry point of `moxserve`: the list of commands, and how errors become messages and exit codes.

A command is named here with its help line and the `module:attribute` of its click command; the module is imported when
the command runs, so `moxserve --help` imports none of them.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from moxserve import __version__
from moxserve.errors import MoxserveError

__all__ = ["LazyGroup", "cli", "main"]

COMMANDS: Mapping[str, tuple[str, str]] = {
    "data": ("moxserve.cli.data:data", "Write sample data sets; look into data, and measure it."),
    "deploy": ("moxserve.cli.deploy:deploy", "Write manifests: KServe, Kubernetes, docker-compose."),
    "export": ("moxserve.cli.export:export", "Turn a checkpoint into a verified, versioned artifact."),
    "inspect": ("moxserve.cli.inspect:inspect", "Show what is in models and checkpoints; convert between formats."),
    "launch": ("moxserve.cli.launch:launch", "Train with several processes, here or on other machines."),
    "loadtest": ("moxserve.cli.loadtest:loadtest", "Load a running server and check limits."),
    "models": ("moxserve.cli.models:models", "Show networks of the zoo; show and change what a server serves."),
    "pipeline": ("moxserve.cli.pipeline:pipeline", "Run, check and show training pipelines."),
    "plugins": ("moxserve.cli.plugins:plugins", "List and show plugins."),
    "predict": ("moxserve.cli.predict:predict", "Predict a data set against a server or a local model."),
    "quickstart": (
        "moxserve.cli.quickstart:quickstart",
        "Train, export, serve, predict and load-test on real digits.",
    ),
    "run": ("moxserve.cli.run:run", "Run a training script, with moxserve's messages and exit codes."),
    "serve": ("moxserve.cli.serve:serve", "Serve models: a drop-in for tensorflow_model_server."),
}

EXIT_CODES = """\b
Exit codes: 0 done; 1 failed; 2 wrong usage or configuration; 3 done in part;
4 server unreachable; 5 verification differs; 130/143 interrupted, state saved."""


class LazyGroup(click.Group):
    """A click group whose commands are imported when they are called, and which suggests names for a wrong one."""

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, sorted, importing nothing."""
        return sorted({*self._lazy, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; None when there is none of that name."""
        entry = self._lazy.get(cmd_name)
        if entry is None:
            return super().get_command(ctx, cmd_name)
        module_name, _, attribute = entry[0].partition(":")
        command: click.Command = getattr(importlib.import_module(module_name), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the nearest ones."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=2)
            hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
            raise click.UsageError(f"{error.message.rstrip('.')}.{hint}", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the command list; the lazy ones from their stored help lines, importing nothing."""
        rows = {name: command.get_short_help_str(100) for name, command in self.commands.items()}
        rows |= {name: line for name, (_, line) in self._lazy.items()}
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows.items()))


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)
@click.version_option(__version__, prog_name="moxserve")
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    envvar="MOXSERVE_DEBUG",
    help="Show tracebacks, and TensorFlow's own notes. [env: MOXSERVE_DEBUG]",
)
@click.pass_context
def cli(ctx: click.Context, verbose: bool) -> None:
    """Take a TensorFlow model from data to a measured, verified, served artifact."""
    ctx.obj = {"verbose": verbose}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status.

    Args:
        argv: arguments without the program name; None takes those of the process.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    verbose = "-v" in args[:1] or "--verbose" in args[:1] or bool(os.environ.get("MOXSERVE_DEBUG"))
    try:
        status = cli.main(args=args, prog_name="moxserve", standalone_mode=False)
    except MoxserveError as error:
        if verbose:
            raise
        click.secho("error: ", fg="red", bold=True, nl=False, err=True)
        click.echo(error.message, err=True)
        if error.hint:
            click.secho("hint: ", fg="cyan", nl=False, err=True)
            click.echo(error.hint, err=True)
        sys.exit(getattr(error, "code", None) or error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output is gone (`moxserve ... | head`): nothing to tell, and nothing to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        # A full disk, a read-only folder: no fault of the program, and the system's words say it all.
        if verbose:
            raise
        click.secho("error: ", fg="red", bold=True, nl=False, err=True)
        click.echo(error, err=True)
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)
