"""Parameters of `numpy`."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field, model_validator

from moxserve.errors import DataError
from moxserve.pipeline.slots import InputBundle
from moxserve_plugins.inputs import BatchedInput

__all__ = ["NumpyArrays"]

Source = str | dict[str, str]


class NumpyArrays(BatchedInput):
    """Arrays from an .npz file or several .npy files, with their own dtypes; rows are the first dimension."""

    train: Source | None = Field(
        default=None, description="Training data: an .npz file, or a mapping of names to .npy files."
    )
    eval: Source | None = Field(default=None, description="The same for evaluation and prediction.")
    names: list[str] = Field(
        default=["image", "label"], min_length=1, description="Arrays to give to the model, in this order."
    )
    labels: list[str] | None = Field(default=None, description="Class names by index, if the data are classes.")

    @model_validator(mode="after")
    def _has_data(self) -> NumpyArrays:
        if self.train is None and self.eval is None:
            raise ValueError("expected train, eval or both")
        return self

    def check(self) -> Iterable[tuple[str, str]]:
        """Read the headers: files and names there, arrays equal in rows, training and evaluation alike."""
        from moxserve_plugins.numpy_arrays.arrays import check_alike, read_specs

        problems = []
        specs = {}
        for part, source in (("train", self.train), ("eval", self.eval)):
            if source is not None:
                try:
                    specs[part] = read_specs(source, self.names)
                except DataError as error:
                    problems.append((part, error.message))
        if len(specs) == 2:
            wrong = check_alike(specs["train"], specs["eval"])
            problems += [("eval", wrong)] if wrong else []
        return problems

    def describe(self) -> str:
        """Say what is there."""
        from moxserve_plugins.numpy_arrays.arrays import read_specs

        parts = []
        for part, source in (("train", self.train), ("eval", self.eval)):
            if source is not None:
                specs = read_specs(source, self.names)
                arrays = ", ".join(f"{s.name} {s.dtype}{list(s.shape[1:])}" for s in specs)
                parts.append(f"{part}: {specs[0].shape[0]} rows of {arrays}")
        return "; ".join(parts)

    def build(self) -> InputBundle:
        """Read the headers; see InputPlugin."""
        from moxserve_plugins.numpy_arrays.build import bundle

        return bundle(self)
