"""The caller's side of a probe: starts the process, waits for it, reads what it left."""

from __future__ import annotations

from moxserve.export.manifest import Variant
from moxserve.export.variants.work import Rows
from moxserve.probe.result import ProbeOptions, ProbeResult

__all__ = ["probe"]


def probe(
    version_dir: str, variant: Variant | str | None, signature: str, rows: Rows, options: ProbeOptions | None = None
) -> ProbeResult:
    """Try one form of a version in a process of its own, and wait for it.

    Args:
        version_dir: the version, staged or published; a manifest need not be there.
        variant: as it is declared, or will be; the name of one that lies in the directory; None for the SavedModel.
        signature: key of the signature to call.
        rows: real rows; `inputs` are sent, `count` of them.
        options: None takes the defaults.

    Returns:
        What was found. A model that cannot be loaded, refuses a row, crashes or hangs is told in `error`.
    """
    raise RuntimeError((version_dir, variant, signature, rows, options))
