"""Paths on the command line: of this machine, or URLs of stores."""

from __future__ import annotations

from typing import Any

import click

__all__ = ["ExistingPath"]


class ExistingPath(click.Path):
    """A path that must be there; of a URL (`s3://…`, `obs://…`) that shows when it is read."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(exists=True, **kwargs)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check a local path, and give a URL as it is."""
        from moxserve.file.filesystem import is_remote

        return value if isinstance(value, str) and is_remote(value) else super().convert(value, param, ctx)
