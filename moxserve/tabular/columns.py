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
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from moxserve.config.models import ExistingFile, StrictModel, told_apart_by
from moxserve.config.tree import Node, Place
from moxserve.errors import ConfigError, ConfigProblem, DataError, UsageError, did_you_mean

__all__ = [
    "KINDS",
    "Bucketized",
    "Column",
    "Crossed",
    "Embedding",
    "Hash",
    "Identity",
    "Indicator",
    "Numeric",
    "SharedEmbedding",
    "Vocabulary",
    "Weighted",
    "column_problems",
    "input_keys",
    "needed_columns",
    "read_columns",
    "read_vocabulary",
]

Numbers = float | list[float]


class _Column(StrictModel):
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


class _Input(_Column):
    """A column that reads an input."""

    key: str = Field(default="", description="Input that is read; the column's own name by default.")


class Numeric(_Input):
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


class Bucketized(_Column):
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


class Vocabulary(_Input):
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


class Identity(_Input):
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


class Hash(_Input):
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


class Crossed(_Column):
    """Two or more categories together: each combination is hashed. A hash column takes part with its values."""

    categorical: ClassVar[bool] = True
    takes: ClassVar[tuple[str, ...]] = ("bucketized", "vocabulary", "identity", "hash")

    kind: Literal["crossed"]
    of: list[str] = Field(min_length=2, description="The categorical columns.")
    buckets: int = Field(ge=2, description="How many buckets there are.")
    hash_key: int | None = Field(default=None, ge=0, description="Another key makes another hash.")


class Weighted(_Column):
    """A category with a weight for each value."""

    categorical: ClassVar[bool] = True
    takes: ClassVar[tuple[str, ...]] = ("vocabulary", "identity", "hash")

    kind: Literal["weighted"]
    of: str = Field(description="The categorical column.")
    weight: str = Field(min_length=1, description="Input with a number for each of its values.")


_CATEGORIES = ("bucketized", "vocabulary", "identity", "hash", "crossed", "weighted")


class Indicator(_Column):
    """A category as zeros and a one; of several values as counts."""

    dense: ClassVar[bool] = True
    takes: ClassVar[tuple[str, ...]] = _CATEGORIES

    kind: Literal["indicator"]
    of: str = Field(description="The categorical column.")


class _Vectors(_Column):
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
KINDS: Mapping[str, type[_Column]] = {get_args(c.model_fields["kind"].annotation)[0]: c for c in get_args(AnyColumn)}
if TYPE_CHECKING:
    Column = AnyColumn
else:
    Column = told_apart_by("kind", KINDS)
_COLUMNS: TypeAdapter[dict[str, AnyColumn]] = TypeAdapter(dict[str, Column])


# ---- reading


def read_columns(source: Mapping[str, Any] | str | os.PathLike[str]) -> dict[str, AnyColumn]:
    """Read declarations.

    Args:
        source: name -> column, as a mapping with the key `kind` or as an object of this module; or a YAML file of such.

    Raises:
        UsageError: something is wrong; every problem is told, with its key and for a file with its place.
    """
    if not isinstance(source, Mapping):
        return _read_file(os.fspath(source))
    try:
        # Pydantic takes an object of a class as it is; the tag of the union is read from both.
        columns = _COLUMNS.validate_python(dict(source))
    except ValidationError as error:
        raise UsageError("\n".join(_plain(error, source))) from None
    if problems := list(column_problems(columns)):
        raise UsageError("\n".join(f"{key}: {message}" for key, message in problems))
    return columns


def _plain(error: ValidationError, source: Mapping[str, Any]) -> Iterator[str]:
    from moxserve.config.explain import explain

    for problem in explain(error, dict[str, Column], _node(source), ""):
        yield f"{problem.key}: {problem.message}"


def _node(value: Any) -> Node:
    """Make a tree of data that was written in Python, without places."""
    if isinstance(value, Mapping):
        value = {str(key): _node(inner) for key, inner in value.items()}
    elif isinstance(value, (list, tuple)):
        value = [_node(inner) for inner in value]
    return Node(value, Place(""))


def _read_file(path: str) -> dict[str, AnyColumn]:
    from moxserve import file
    from moxserve.config.explain import explain
    from moxserve.config.tree import parse

    tree = parse(file.read(path), path)
    if not isinstance(tree.value, dict):
        raise ConfigError([tree.place.problem("expected a mapping of names to columns")])
    problems: list[ConfigProblem] = []
    columns: dict[str, AnyColumn] = {}
    try:
        columns = _COLUMNS.validate_python(tree.data())
    except ValidationError as error:
        problems = explain(error, dict[str, Column], tree, "")
    for key, message in column_problems(columns):
        node = tree
        for part in key.split("."):
            node = node.child(part) or node
        problems.append(node.place.problem(message, key))
    if problems:
        raise ConfigError(problems)
    return columns


# ---- what goes together


def column_problems(columns: Mapping[str, _Column]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong between columns: pairs of a dotted key, `NAME` or `NAME.FIELD`, and a message."""
    for name, column in columns.items():
        if "." in name or "/" in name or not name:
            yield name, f"the name {name!r} is empty, or has a dot or slash in it"
        for source in column.sources():
            if message := _wrong_source(columns, name, column, source):
                yield f"{name}.of", message
    yield from _unequal_inputs(columns)
    yield from _unequal_tables(columns)


def _wrong_source(columns: Mapping[str, _Column], name: str, column: _Column, source: str) -> str:
    fitting = [other for other, c in columns.items() if c.kind in column.takes and other != name]
    if source not in columns:
        return f"no column {source!r}; {did_you_mean(source, fitting)}"
    kind = columns[source].kind
    if kind in column.takes:
        return ""
    kinds = f"{', '.join(column.takes[:-1])} or {column.takes[-1]}" if len(column.takes) > 1 else column.takes[0]
    return f"{source!r} is a column of kind {kind}; expected one of kind {kinds}"


def _unequal_inputs(columns: Mapping[str, _Column]) -> Iterator[tuple[str, str]]:
    """One input has one element type, and one number of values."""
    first: dict[str, tuple[str, str]] = {}
    for name, column in columns.items():
        if isinstance(column, _Input):
            key = column.key or name
            dtype = _dtype(column)
            known, other = first.setdefault(key, (dtype, name))
            if "string" in (known, dtype) and known != dtype:
                yield name, f"reads {key!r} as {dtype}; column {other!r} reads it as {known}"


def _unequal_tables(columns: Mapping[str, _Column]) -> Iterator[tuple[str, str]]:
    for name, column in columns.items():
        if isinstance(column, SharedEmbedding):
            known = [columns[source] for source in column.of if source in columns]
            kinds = {c.kind for c in known}
            if len(kinds) > 1:
                yield f"{name}.of", f"expected columns of one kind, got {', '.join(sorted(kinds))}"


def _dtype(column: _Column) -> str:
    if isinstance(column, Vocabulary):
        return column.value_dtype
    return column.dtype if isinstance(column, Hash) else "int64" if isinstance(column, Identity) else "float32"


def input_keys(columns: Mapping[str, _Column], names: Sequence[str] | None = None) -> dict[str, str]:
    """Return the inputs that columns read, directly or through others: key -> dtype.

    Args:
        columns: all of them.
        names: only what these need; None for all.

    Returns:
        `float32` for numbers and weights, `int64` or `string` where a category is read; in the order of `columns`.
    """
    found: dict[str, str] = {}
    for name, column in needed_columns(columns, columns if names is None else names).items():
        if isinstance(column, _Input):
            key = column.key or name
            # A number that is also a category is a whole one.
            found[key] = _dtype(column) if found.get(key, "float32") == "float32" else found[key]
        elif isinstance(column, Weighted):
            found.setdefault(column.weight, "float32")
    return found


def needed_columns(columns: Mapping[str, _Column], names: Iterable[str]) -> dict[str, Any]:
    """Return columns with those that they are made of, in the order of `columns`."""
    pending, found = list(names), set()
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += columns[name].sources()
    return {name: column for name, column in columns.items() if name in found}


def read_vocabulary(column: Vocabulary) -> list[str] | list[int]:
    """Return the values of a vocabulary, from its list or file.

    Raises:
        DataError: the file is empty or no text, has a value twice, or no whole numbers where they are expected.
    """
    if column.values is not None:
        return column.values
    from moxserve import file

    path = str(column.file)
    # A line ends with a line feed, and a carriage return before it is dropped: TensorFlow reads it so, too.
    lines = [line.removesuffix("\r") for line in _text(file.read(path, binary=True), path).split("\n")]
    lines = lines[:-1] if lines[-1] == "" else lines
    if column.size is not None and column.size > len(lines):
        raise DataError(f"{path} has {len(lines)} lines; size asks for {column.size}")
    lines = lines[: column.size]
    if not lines:
        raise DataError(f"{path} is empty; expected one value a line")
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            raise DataError(f"{path}:{number}: is empty; empty text stands for a missing value")
        if line in seen:
            raise DataError(f"{path}:{number}: {line!r} is in line {seen[line]}, too")
        seen[line] = number
    return _whole(lines, path) if column.value_dtype == "int64" else lines


def _text(data: bytes, path: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from None


def _whole(lines: Sequence[str], path: str) -> list[int]:
    numbers = []
    for place, line in enumerate(lines, start=1):
        try:
            numbers.append(int(line))
        except ValueError:
            raise DataError(f"{path}:{place}: {line!r} is no whole number, and dtype is int64") from None
    return numbers
