"""Parameters of `table`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from moxserve.config.models import ExistingFile, StrictModel
from moxserve.errors import DataError, did_you_mean
from moxserve.file.labels import read_labels
from moxserve.pipeline.slots import InputBundle
from moxserve.tabular import cells
from moxserve.tabular.files import CsvFormat, column_names, file_format
from moxserve_plugins.inputs import BatchedInput

__all__ = ["LABEL", "WEIGHT", "Csv", "Table", "TableColumn"]

# Names of the tensors that are no features.
LABEL, WEIGHT = "label", "sample_weight"

Files = ExistingFile | list[ExistingFile]
Dtype = Literal["float32", "int64", "string"]


class TableColumn(StrictModel):
    """A column that the model gets."""

    dtype: Dtype = Field(default="float32", description="Of its values.")
    optional: bool = Field(
        default=False,
        description="Whether a number may be missing: NaN then, or -1. Text always may: it is empty then.",
    )
    several: bool = Field(
        default=False, description="Whether a row has any number of values; they are padded to the longest row."
    )


def _column(value: Any) -> Any:
    """Read `age: float32` as `age: {dtype: float32}`."""
    return {"dtype": value} if isinstance(value, str) else value


class Csv(StrictModel):
    """How CSV files are written."""

    delimiter: str | None = Field(
        default=None, description="Between cells; one character. By default a tab in .tsv files, a comma in others."
    )
    quote: str = Field(default='"', description="Around cells, doubled inside; '' where no cell is quoted.")
    header: bool = Field(default=True, description="Whether the first line names the columns.")
    names: list[str] | None = Field(default=None, min_length=1, description="Of the columns, for `header: false`.")
    missing: list[str] = Field(default=[""], description="Texts of a cell that stand for no value.")
    separator: str = Field(default="|", min_length=1, description="Between the values of a cell that has several.")
    skip_space: bool = Field(default=False, description="Whether spaces after a delimiter belong to no cell.")

    @field_validator("delimiter", "quote")
    @classmethod
    def _one_character(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        if len(value) > 1 or (not value and info.field_name == "delimiter") or value in ("\n", "\r"):
            raise ValueError("expected one character, no line break")
        return value

    @model_validator(mode="after")
    def _named(self) -> Csv:
        if self.header == (self.names is not None):
            raise ValueError("expected names with header: false, and only then")
        return self

    def style(self) -> CsvFormat:
        """Return the same as the reader takes it."""
        return CsvFormat(**self.model_dump())


class Table(BatchedInput):
    """Columns of CSV, Parquet or TFRecord files: numbers, text, a class or number to learn, a weight for each row."""

    train: Files | None = Field(default=None, description="Training rows: a file, or several.")
    eval: Files | None = Field(default=None, description="Rows of evaluation and prediction: a file, or several.")
    split: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of the training rows that is set apart for evaluation, in place of `eval`.",
    )
    split_seed: int = Field(default=0, ge=0, description="Seed of that choice.")
    format: Literal["csv", "parquet", "tfrecord"] | None = Field(
        default=None, description="Of the files; by default what their suffixes say."
    )
    csv: Csv = Field(default=Csv(), description="How CSV files are written.")
    columns: dict[str, Annotated[TableColumn, BeforeValidator(_column)]] = Field(
        min_length=1,
        description="Columns that the model gets: name and type, such as `age: float32`, or more in a mapping.",
    )
    label: str | None = Field(default=None, description="Column to learn.")
    label_dtype: Dtype = Field(
        default="string", description="string: names of classes; int64: their numbers; float32: a number to predict."
    )
    labels: list[str] | None = Field(
        default=None, min_length=2, description="Class names by index; by default those of the training rows, sorted."
    )
    labels_file: ExistingFile | None = Field(
        default=None, description="The same from a file: `0: name` a line, or names."
    )
    weight: str | None = Field(default=None, description="Column with the weight of each row in the loss.")

    @model_validator(mode="after")
    def _goes_together(self) -> Table:
        if self.train is None and self.eval is None:
            raise ValueError("expected train, eval or both")
        if self.split is not None and (self.eval is not None or self.train is None):
            raise ValueError("split goes with train alone, without eval")
        if self.labels is not None and self.labels_file is not None:
            raise ValueError("expected either labels or labels_file")
        if (self.labels or self.labels_file) and (self.label is None or self.label_dtype == "float32"):
            raise ValueError("labels are names of classes: they go with a label that is no float32")
        return self

    @field_validator("labels")
    @classmethod
    def _no_doubles(cls, value: list[str] | None) -> list[str] | None:
        for number, name in enumerate(value or ()):
            if name in (value or ())[:number]:
                raise ValueError(f"{name!r} is there twice")
        return value

    @field_validator("columns")
    @classmethod
    def _free_names(cls, value: dict[str, TableColumn]) -> dict[str, TableColumn]:
        for name in (LABEL, WEIGHT):
            if name in value:
                raise ValueError(f"{name!r} is the name of another tensor; name that column with `label` or `weight`")
        return value

    def files(self, part: str) -> list[str]:
        """Return the files of `train` or `eval`."""
        found = getattr(self, part)
        return [] if found is None else [found] if isinstance(found, str) else list(found)

    def fields(self) -> list[cells.Field]:
        """Return what is read: the columns, then the label and the weight if they are not among them."""
        found = [cells.Field(name, c.dtype, c.optional, c.several) for name, c in self.columns.items()]
        if self.label is not None and self.label not in self.columns:
            found.append(cells.Field(self.label, self.label_dtype))
        if self.weight is not None and self.weight not in self.columns:
            found.append(cells.Field(self.weight, "float32"))
        return found

    def check(self) -> Iterable[tuple[str, str]]:
        """Read the files' first lines: every column there, labels readable."""
        if self.label in self.columns:
            yield "label", f"{self.label!r} is among the columns: a model must not get what it is to predict"
        for part in ("train", "eval"):
            for path in self.files(part):
                try:
                    names = column_names(path, self.csv.style(), self.format)
                except DataError as error:
                    yield part, error.message
                else:
                    yield from self._unknown(path, names)
        if self.labels_file is not None:
            try:
                self.class_names()
            except DataError as error:
                yield "labels_file", error.message

    def _unknown(self, path: str, names: list[str]) -> Iterator[tuple[str, str]]:
        keys = {name: f"columns.{name}" for name in self.columns}
        keys |= {name: key for key, name in (("label", self.label), ("weight", self.weight)) if name is not None}
        for name, key in keys.items():
            # An example may lack any feature.
            if name not in names and file_format(path, self.format) != "tfrecord":
                yield key, f"{path} has no column {name!r}; {did_you_mean(name, names, 20)}"

    def class_names(self) -> list[str] | None:
        """Return the class names that were given; None when none were.

        Raises:
            DataError: the labels file is wrong.
        """
        if self.labels_file is None:
            return self.labels
        names = read_labels(self.labels_file, bare=True)
        if len(names) < 2:
            raise DataError(f"{self.labels_file}: expected at least two classes, got {names[0]!r}")
        return list(names)

    def describe(self) -> str:
        """Say what is there."""
        columns = ", ".join(f"{name} {column.dtype}" for name, column in self.columns.items())
        label = f" to {self.label}" if self.label is not None else ""
        apart = f"; {self.split:.0%} of it to evaluate" if self.split is not None else ""
        parts = [f"{part}: {', '.join(self.files(part))}" for part in ("train", "eval") if self.files(part)]
        return f"{'; '.join(parts)}{apart}; {columns}{label}"

    def build(self) -> InputBundle:
        """Read the tables; see InputPlugin."""
        from moxserve_plugins.table.build import bundle

        return bundle(self)
