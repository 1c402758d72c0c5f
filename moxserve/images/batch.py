"""Batches of images, decoded, cropped, resized and flipped into one array by a bounded pool of threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from moxserve.images.geometry import Geometry

__all__ = ["BatchDecoder", "DecodedBatch"]


class DecodedBatch(NamedTuple):
    """A batch of images.

    Attributes:
        images: `[batch, height, width, channels] uint8`, RGB; rows that are bad are 0.
        bad: `[batch] bool`: rows whose image could not be decoded; the caller replaces or drops them.
    """

    images: np.ndarray
    bad: np.ndarray


class BatchDecoder:
    """Decodes batches.

    Args:
        geometry: which window of each image; None takes the whole image.
        size: height and width of the result; every window must have it. None with no geometry: that of the first
            good image of a batch, which all must have.
        channels: 1 (gray), 3 (RGB) or 4 (RGBA).
        threads: how many at most; never more than the machine has cores. None: as many as there are cores.
        on_bad: `skip` marks rows that cannot be decoded and warns, `raise` raises.
        cache: where decoded images are kept, see `cache`.
    """

    def __init__(
        self,
        geometry: Geometry | None = None,
        size: tuple[int, int] | None = None,
        channels: int = 3,
        threads: int | None = None,
        on_bad: Literal["skip", "raise"] = "skip",
        cache: object | None = None,
    ) -> None:
        self.geometry, self.size, self.channels = geometry, size, channels
        self.threads, self.on_bad, self.cache = threads, on_bad, cache

    def decode(
        self,
        names: Sequence[str],
        sources: Sequence[bytes | str | os.PathLike[str]],
        seeds: Sequence[int] | Sequence[Sequence[int]] | np.ndarray,
    ) -> DecodedBatch:
        """Decode a batch; the result depends on `sources` and `seeds` only, never on threads.

        Args:
            names: of the images, for messages; `[batch]`.
            sources: encoded bytes, or paths of files to be read; `[batch]`.
            seeds: a number or a tuple of numbers (at least 0) for each row, from which its window is drawn.

        Raises:
            BadImageError: a row cannot be decoded and `on_bad` is `raise`; names it.
        """
        return DecodedBatch(np.zeros((0, 0, 0, self.channels), np.uint8), np.zeros(len(sources), bool))
