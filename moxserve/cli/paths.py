"""Paths on the command line: of this machine, or URLs of stores."""

from __future__ import annotations

from typing import Any

import click

__all__ = ["SEND_IT", "ExistingPath", "LocalPath"]

SEND_IT = "write it here, then copy it to the store: mox.file.copy_parallel(here, url)"


class LocalPath(click.Path):
    """A path of this machine: a URL of a store is refused, and never taken for a folder called `s3:`.

    Args:
        instead: what to do with what is, or shall be, in a store.
    """

    def __init__(self, instead: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._instead = instead

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check a path.

        Raises:
            UsageError: it is a URL.
        """
        from moxserve.errors import UsageError
        from moxserve.file.filesystem import is_remote

        if isinstance(value, str) and is_remote(value):
            name = param.opts[0] if isinstance(param, click.Option) else (param.human_readable_name if param else "")
            raise UsageError(f"{name} {value!r}: expected a path of this machine", hint=self._instead)
        return super().convert(value, param, ctx)


class ExistingPath(click.Path):
    """A path that must be there; of a URL (`s3://…`, `obs://…`) that shows when it is read."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(exists=True, **kwargs)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check a local path, and give a URL as it is."""
        from moxserve.file.filesystem import is_remote

        return value if isinstance(value, str) and is_remote(value) else super().convert(value, param, ctx)
