"""How the columns of a table become features of a model: what people declare, in YAML or Python. No TensorFlow.

    numeric            a number, or several: normalized by given or fitted mean and standard deviation
    bucketized         a numeric column's range                  boundaries [20, 30]: (-inf, 20), [20, 30), [30, inf)
    vocabulary         text or whole numbers of a list or file   the place in the list; others: buckets or a default
    identity           whole numbers from 0                      the number itself
    hash               text or whole numbers                     tf.strings.to_hash_bucket_fast
    crossed            two or more categories together           hashed
    weighted           a category with a weight for each value
    indicator          a category as zeros and ones              [buckets]
    embedding          a category as a vector that is learned    [dimension]
    shared_embedding   several categories, one table of vectors  [dimension] each

Declarations are a mapping of names to columns; `of` names other columns. numeric, vocabulary, identity and hash read
the input `key`, which is the column's own name where it is not given.

A value is missing when it is NaN (numbers), empty text, or -1 (whole numbers); categories of several values are padded
with it. A missing number becomes `missing`; a category without a value is no category (zeros, in a vector or a sum),
unless `missing` says which value it counts as.

`moxserve.tensorflow.feature_columns` builds the features.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from moxserve.config.models import ExistingFile, StrictModel, told_apart_by

__all__ = [
    "KINDS",
    "AnyColumn",
    "Bucketized",
    "Column",
    "ColumnBase",
    "Crossed",
    "Embedding",
    "Hash",
    "Identity",
    "Indicator",
    "InputColumn",
    "Numeric",
    "SharedEmbedding",
    "Vocabulary",
    "Weighted",
]

Numbers = float | list[float]


class ColumnBase(StrictModel):
    """What every column has.

    Attributes:
        categorical: whether it gives categories; they go into sums, crosses, indicators and embeddings.
        dense: whether it gives numbers; they go into a network.
        takes: kinds that `of` may name.
    """

    categorical: ClassVar[bool] = False
    dense: ClassVar[bool] = False
    takes: ClassVar[tuple[str, ...]] = ()

    kind: str

    def sources(self) -> list[str]:
        """Return the columns that it is made of."""
        found = getattr(self, "of", None)
        return [found] if isinstance(found, str) else list(found or ())


class InputColumn(ColumnBase):
    """A column that reads an input."""

    key: str = Field(default="", description="Input that is read; the column's own name by default.")


class Numeric(InputColumn):
    """A number, or several."""

    dense: ClassVar[bool] = True

    kind: Literal["numeric"]
    shape: Annotated[int, Field(ge=1)] = Field(default=1, description="How many numbers a row has.")
    missing: Numbers | None = Field(
        default=None, description="What a missing number counts as; without it no number may be missing."
    )
    mean: Numbers | None = Field(default=None, description="Is subtracted.")
    std: Numbers | None = Field(default=None, description="What is left is divided by it.")
    fit: bool = Field(
        default=False, description="Mean and standard deviation are those of the training rows; kept in checkpoints."
    )

    @field_validator("std")
    @classmethod
    def _positive(cls, value: Numbers | None) -> Numbers | None:
        if value is not None and min(value if isinstance(value, list) else [value]) <= 0:
            raise ValueError("expected numbers greater than 0")
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> Numeric:
        if self.fit and (self.mean is not None or self.std is not None):
            raise ValueError("expected either fit or mean and std")
        for name in ("missing", "mean", "std"):
            value = getattr(self, name)
            if isinstance(value, list) and len(value) != self.shape:
                raise ValueError(f"{name} has {len(value)} numbers; expected one, or {self.shape} as shape says")
        return self


class Bucketized(ColumnBase):
    """Which range a numeric column is in; the number as it is read, not normalized."""

    categorical: ClassVar[bool] = True
    dense: ClassVar[bool] = True
    takes: ClassVar[tuple[str, ...]] = ("numeric",)

    kind: Literal["bucketized"]
    of: str = Field(description="The numeric column.")
    boundaries: list[float] = Field(
        min_length=1, description="Where ranges begin, ascending; a number equal to one is in the range above it."
    )

    @field_validator("boundaries")
    @classmethod
    def _ascending(cls, value: list[float]) -> list[float]:
        for low, high in itertools.pairwise(value):
            if not low < high:
                raise ValueError(f"expected ascending numbers: {high:g} follows {low:g}")
        return value


class Vocabulary(InputColumn):
    """A value's place in a list."""

    categorical: ClassVar[bool] = True

    kind: Literal["vocabulary"]
    values: list[str] | list[int] | None = Field(default=None, min_length=1, description="The list.")
    file: ExistingFile | None = Field(default=None, description="A file of the list, one value a line.")
    size: int | None = Field(default=None, ge=1, description="Only the file's first lines.")
    dtype: Literal["string", "int64"] | None = Field(
        default=None, description="Of the values: that of the list, or string for a file."
    )
    oov_buckets: int = Field(default=0, ge=0, description="Buckets after the list that other values are hashed to.")
    default_value: int | None = Field(
        default=None, ge=0, description="Place that other values count as; without it they are no category."
    )
    missing: str | int | None = Field(default=None, description="Value that a missing one counts as.")

    @field_validator("values")
    @classmethod
    def _no_doubles(cls, value: list[str] | list[int] | None) -> list[str] | list[int] | None:
        for number, item in enumerate(value or ()):
            if item in (value or ())[:number]:
                raise ValueError(f"{item!r} is there twice")
            if item in ("", -1):
                raise ValueError(f"{item!r} stands for a missing value; leave it out, or say `missing`")
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> Vocabulary:
        if (self.values is None) == (self.file is None):
            raise ValueError("expected either values or file")
        if self.values is not None and self.size is not None:
            raise ValueError("size goes with file")
        if self.values is not None and self.dtype not in (None, self.value_dtype):
            raise ValueError(f"dtype is {self.dtype}, and the values are {self.value_dtype}")
        if self.oov_buckets and self.default_value is not None:
            raise ValueError("expected either oov_buckets or default_value")
        if self.default_value is not None and self.values is not None and self.default_value >= len(self.values):
            raise ValueError(
                f"default_value is {self.default_value}; expected a place in the list, 0 to {len(self.values) - 1}"
            )
        _check_missing(self.missing, self.value_dtype)
        return self

    @property
    def value_dtype(self) -> str:
        """Dtype of the values: `string` or `int64`."""
        if self.values is not None:
            return "string" if isinstance(self.values[0], str) else "int64"
        return self.dtype or "string"


class Identity(InputColumn):
    """A whole number from 0 that is a category itself."""

    categorical: ClassVar[bool] = True

    kind: Literal["identity"]
    buckets: int = Field(ge=1, description="How many there are: numbers from 0 to one less.")
    default_value: int | None = Field(
        default=None, ge=0, description="What other numbers count as; without it they are no category."
    )
    missing: int | None = Field(default=None, ge=0, description="Number that a missing one counts as.")

    @model_validator(mode="after")
    def _in_range(self) -> Identity:
        for name in ("default_value", "missing"):
            value = getattr(self, name)
            if value is not None and value >= self.buckets:
                raise ValueError(f"{name} is {value}; expected 0 to {self.buckets - 1}")
        return self


class Hash(InputColumn):
    """A value's hash: many values, whatever they are; several may meet in a bucket."""

    categorical: ClassVar[bool] = True

    kind: Literal["hash"]
    buckets: int = Field(ge=2, description="How many buckets there are.")
    dtype: Literal["string", "int64"] = Field(default="string", description="Of the values.")
    missing: str | int | None = Field(default=None, description="Value that a missing one counts as.")

    @model_validator(mode="after")
    def _fits(self) -> Hash:
        _check_missing(self.missing, self.dtype)
        return self


class Crossed(ColumnBase):
    """Two or more categories together: each combination is hashed. A hash column takes part with its values."""

    categorical: ClassVar[bool] = True
    takes: ClassVar[tuple[str, ...]] = ("bucketized", "vocabulary", "identity", "hash")

    kind: Literal["crossed"]
    of: list[str] = Field(min_length=2, description="The categorical columns.")
    buckets: int = Field(ge=2, description="How many buckets there are.")
    hash_key: int | None = Field(default=None, ge=0, description="Another key makes another hash.")


class Weighted(ColumnBase):
    """A category with a weight for each value."""

    categorical: ClassVar[bool] = True
    takes: ClassVar[tuple[str, ...]] = ("vocabulary", "identity", "hash")

    kind: Literal["weighted"]
    of: str = Field(description="The categorical column.")
    weight: str = Field(min_length=1, description="Input with a number for each of its values.")


_CATEGORIES = ("bucketized", "vocabulary", "identity", "hash", "crossed", "weighted")


class Indicator(ColumnBase):
    """A category as zeros and a one; of several values as counts."""

    dense: ClassVar[bool] = True
    takes: ClassVar[tuple[str, ...]] = _CATEGORIES

    kind: Literal["indicator"]
    of: str = Field(description="The categorical column.")


class _Vectors(ColumnBase):
    """What embeddings have."""

    dense: ClassVar[bool] = True
    takes: ClassVar[tuple[str, ...]] = _CATEGORIES

    dimension: int = Field(ge=1, description="Numbers of a vector.")
    combiner: Literal["mean", "sqrtn", "sum"] = Field(
        default="mean", description="How the vectors of several values become one; sqrtn divides by the root."
    )
    initializer: Literal["truncated_normal", "normal", "uniform", "zeros"] = Field(
        default="truncated_normal", description="How vectors begin."
    )
    scale: float | None = Field(
        default=None, gt=0, description="Deviation of the first two, bound of uniform; 1/sqrt(dimension) by default."
    )
    checkpoint: str | None = Field(default=None, description="Checkpoint, or folder of one, that vectors begin with.")
    tensor: str | None = Field(default=None, description="Name of the vectors there.")
    max_norm: float | None = Field(default=None, gt=0, description="Longer vectors are shortened to it.")
    trainable: bool = Field(default=True, description="Whether the vectors are trained.")

    @model_validator(mode="after")
    def _both(self) -> Any:
        if (self.checkpoint is None) != (self.tensor is None):
            raise ValueError("expected both checkpoint and tensor, or neither")
        return self


class Embedding(_Vectors):
    """A category as a vector that is learned."""

    kind: Literal["embedding"]
    of: str = Field(description="The categorical column.")


class SharedEmbedding(_Vectors):
    """Several categories of the same values as vectors of one table."""

    kind: Literal["shared_embedding"]
    of: list[str] = Field(min_length=2, description="The categorical columns; all have as many buckets.")


def _check_missing(value: str | int | None, dtype: str) -> None:
    if value is not None and isinstance(value, str) != (dtype == "string"):
        raise ValueError(f"missing is {value!r}, and the values are {dtype}")
    if value in ("", -1):
        raise ValueError(f"missing is {value!r}, which stands for a missing value itself")


AnyColumn = (
    Numeric | Bucketized | Vocabulary | Identity | Hash | Crossed | Weighted | Indicator | Embedding | SharedEmbedding
)
KINDS: Mapping[str, type[ColumnBase]] = {get_args(c.model_fields["kind"].annotation)[0]: c for c in get_args(AnyColumn)}
if TYPE_CHECKING:
    Column = AnyColumn
else:
    Column = told_apart_by("kind", KINDS)
