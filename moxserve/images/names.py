"""Which files of a folder are images, by their names; what they are is told by their content."""

from __future__ import annotations

__all__ = ["IMAGE_EXTENSIONS", "is_image"]

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".gif")


def is_image(name: str) -> bool:
    """Tell whether a file is taken for an image by its name."""
    return name.lower().endswith(IMAGE_EXTENSIONS)
