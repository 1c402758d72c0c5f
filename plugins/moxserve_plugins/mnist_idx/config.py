"""Parameters of `mnist_idx`."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from moxserve.config.models import ExistingDir
from moxserve.errors import DataError
from moxserve.pipeline.slots import InputBundle
from moxserve_plugins.inputs import BatchedInput

__all__ = ["MnistIdx"]


class MnistIdx(BatchedInput):
    """MNIST's four gzipped IDX files, such as train-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz."""

    dir: ExistingDir = Field(description="Folder of the files; the t10k- pair is for evaluation.")

    def check(self) -> Iterable[tuple[str, str]]:
        """Read the headers: all four files there, of the right kind, images and labels equal in number."""
        from moxserve_plugins.mnist_idx.idx import read_headers

        try:
            read_headers(self.dir)
        except DataError as error:
            return [("dir", error.message)]
        return []

    def describe(self) -> str:
        """Say what is there."""
        from moxserve_plugins.mnist_idx.idx import read_headers

        shapes = read_headers(self.dir)
        rows, height, width = shapes["train"]
        return f"images {height}x{width}x1: {rows} to train, {shapes['t10k'][0]} to evaluate, in {self.dir}"

    def build(self) -> InputBundle:
        """Read the headers; see InputPlugin."""
        from moxserve_plugins.mnist_idx.build import bundle

        return bundle(self)
