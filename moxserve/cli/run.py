"""`moxserve run`: run a training script as `python` does, with moxserve's messages, exit codes and forms of output."""

from __future__ import annotations

import os
import re
import runpy
import sys
import traceback

import click

from moxserve.cli.paths import LocalPath
from moxserve.cli.told import JSON_LINES, QUIET, told_as

__all__ = ["run"]

# What scripts for MoXing and TensorFlow 1 import: a pattern of the error that comes of it here, and what to write.
_IMPORTS = (
    (r"No module named 'moxing", "import moxserve.tensorflow as mox"),
    (r"tensorflow\.contrib|module 'tensorflow[\w.]*' has no attribute 'contrib'",
     "from moxserve.tensorflow.contrib import slim"),
    (r"No module named 'tensorflow\.examples", "from moxserve.tensorflow.datasets import mnist as input_data"),
    (r"module 'tensorflow' has no attribute ", "import tensorflow.compat.v1 as tf"),
)  # fmt: skip


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="\b\nExamples:\n  moxserve run train.py --batch_size=64 --timeline_steps=100\n"
    "  moxserve run --json train.py | jq 'select(.event == \"step\") | .values.loss'",
)
@QUIET
@JSON_LINES
@click.argument("script", type=LocalPath("copy the script here, with what it imports", exists=True, dir_okay=False))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(script: str, arguments: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    """Run SCRIPT, which calls mox.run, with ARGUMENTS of its own.

    It runs as with `python SCRIPT ARGUMENTS`. Errors of moxserve are told in a line, not as a traceback, and lead to
    the exit codes of `moxserve`.
    """
    from moxserve import talk
    from moxserve.errors import MoxserveError

    _become(script, arguments)
    with told_as(as_json=as_json, quiet=quiet):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as error:
            if error.code not in (None, 0):
                talk.tell(talk.error_facts(error))
            raise
        except MoxserveError:
            raise
        except Exception as error:  # noqa: BLE001 - of the script, and told as Python would
            talk.tell(talk.error_facts(error))
            _print_from(script, error)
            if cure := _import_instead(error):
                click.echo(f"hint: scripts for MoXing change in their imports, here to: {cure}", err=True)
            sys.exit(1)


def _become(script: str, arguments: tuple[str, ...]) -> None:
    """Look to the script as if `python` had started it."""
    from moxserve.cli.quiet import hush_tensorflow

    sys.argv = [script, *arguments]
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
    hush_tensorflow()


def _import_instead(error: Exception) -> str | None:
    """Tell what to import where a script asks for what TensorFlow and MoXing were; see docs/scripts.md."""
    if not isinstance(error, (ImportError, AttributeError)):
        return None
    return next((cure for pattern, cure in _IMPORTS if re.search(pattern, str(error))), None)


def _print_from(script: str, error: Exception) -> None:
    """Print the traceback from the script on; what ran the script says nothing about the error."""
    frames = error.__traceback__
    first = frames
    while first is not None and first.tb_frame.f_code.co_filename != script:
        first = first.tb_next
    traceback.print_exception(type(error), error, first or frames)
