"""`moxserve data native-decoder`: build the optional native decoder, or remove it."""

from __future__ import annotations

import os

import click

__all__ = ["native_decoder"]


@click.command(
    "native-decoder", epilog="\b\nExamples:\n  moxserve data native-decoder\n  moxserve data native-decoder --remove"
)
@click.option("--remove", "removing", is_flag=True, help="Remove it; images are decoded as without it from then on.")
def native_decoder(removing: bool) -> None:
    """Build the native decoder, which reads crops of JPEGs faster and gives the same pixels.

    It needs a C compiler and the development files of libjpeg-turbo; CC, CFLAGS and LDFLAGS are heeded. It is kept in
    your cache directory and used by every process that starts after it; MOXSERVE_NATIVE_DECODER=0 switches it off.
    """
    from moxserve.images.native import build, library

    if removing:
        removed = build.remove()
        for path in removed:
            click.echo(f"removed {path}")
        if not removed:
            click.echo(f"there is no native decoder in {library.directory()}")
        return
    built = build.build()
    click.echo(f"compiled by {built.compiler}, compared with the decoders in Python: the same pixels")
    click.echo(f"installed {built.path}")
    if os.environ.get(library.SWITCH) == "0":
        click.echo(f"it is switched off: {library.SWITCH}=0")
