"""What becomes of old versions after a new one is published: `--keep N`."""

from __future__ import annotations

from moxserve.errors import ExportError, MoxserveError, UsageError, first_line
from moxserve.export.publish import open_base
from moxserve.export.versions import parse_version

__all__ = ["apply_retention", "check_keep"]


def check_keep(keep: int) -> int:
    """Check the number of versions to keep.

    Raises:
        UsageError: it is less than 1.
    """
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
        raise UsageError(f"keep {keep!r}: expected a whole number of at least 1, the versions that stay")
    return keep


def apply_retention(base_dir: str, keep: int, published: int | str | None = None) -> list[int]:
    """Remove old versions, but the newest.

    Only numbered directories with a SavedModel count, and are touched: neither named versions, nor links, nor folders
    that only look like a version. The newest are those of the highest numbers, which servers take.

    Args:
        base_dir: base directory of the model.
        keep: how many versions stay, at least 1.
        published: the version that was just published; it stays even if higher numbers are there.

    Returns:
        The numbers that were removed, ascending.

    Raises:
        UsageError: `keep` is less than 1.
        ExportError: a version could not be removed; says which.
    """
    check_keep(keep)
    base = open_base(base_dir)
    numbered = {name: number for name in base.folders() if (number := parse_version(name)) is not None}
    newest_first = sorted(set(numbered.values()), reverse=True)
    complete = {number for name, number in numbered.items() if base.is_model(name)}
    stay = {*[number for number in newest_first if number in complete][:keep], published}
    removed = []
    for name, number in sorted(numbered.items(), key=lambda item: item[1]):
        if number in stay or not base.is_model(name):
            continue
        try:
            if base.remove(name):
                removed.append(number)
        except (OSError, MoxserveError) as error:
            raise ExportError(
                f"the new version is published, but the old one {base.path(name)} could not be removed: "
                f"{first_line(error)}"
            ) from error
    return removed
