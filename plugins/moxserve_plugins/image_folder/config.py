"""Parameters of `image_folder`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, model_validator

from moxserve.config.models import ExistingDir
from moxserve.errors import DataError
from moxserve.pipeline.slots import InputBundle
from moxserve_plugins.inputs import BatchedInput

__all__ = ["ImageFolder"]


class ImageFolder(BatchedInput):
    """PNG and JPEG images in one folder a class, with an optional labels.txt."""

    train_dir: ExistingDir | None = Field(default=None, description="Folder of the training images.")
    eval_dir: ExistingDir | None = Field(default=None, description="Folder of the images to evaluate and predict.")
    classes: list[str] | None = Field(
        default=None, min_length=2, description="Take only these classes, in this order; by default all."
    )
    image_size: tuple[int, int] | None = Field(
        default=None,
        description="[height, width] to resize to; by default that of the first image, which all must have.",
    )
    resize: Literal["bilinear", "nearest", "area"] = Field(default="bilinear", description="How images are resized.")
    channels: Literal[1, 3] | None = Field(
        default=None, description="1 for gray, 3 for colour; by default as the first image."
    )
    cache_mb: int = Field(
        default=512, ge=0, description="Decoded images are kept in memory when they need no more than this, in MiB."
    )

    @model_validator(mode="after")
    def _has_data(self) -> ImageFolder:
        if self.train_dir is None and self.eval_dir is None:
            raise ValueError("expected train_dir, eval_dir or both")
        if self.image_size is not None and min(self.image_size) < 1:
            raise ValueError(f"expected image_size [height, width] of at least 1, got {list(self.image_size)}")
        return self

    def check(self) -> Iterable[tuple[str, str]]:
        """Index the folders: labels.txt against the folders' names, and at least one image a class."""
        from moxserve_plugins.image_folder.index import index_folders

        problems: list[tuple[str, str]] = []
        try:
            index_folders(self, problems)
        except DataError as error:
            problems.append(("", error.message))
        return problems

    def describe(self) -> str:
        """Say what is there."""
        from moxserve_plugins.image_folder.index import index_folders

        found = index_folders(self)
        counts = ", ".join(f"{len(folder.files)} in {folder.path}" for folder in found.folders.values())
        height, width, channels = found.shape
        return f"images {height}x{width}x{channels} of {len(found.labels)} classes: {counts}"

    def build(self) -> InputBundle:
        """Index the folders; see InputPlugin."""
        from moxserve_plugins.image_folder.build import bundle

        return bundle(self)
