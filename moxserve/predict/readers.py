"""What a data set may be, and how its rows, names and labels come out of it.

    folder of folders of pictures   one class a folder, label known; `labels.txt` (`0: name` a line) gives the order of
                                    the classes, else the sorted folder names do
    folder of pictures              no labels
    one picture                     one row
    .npy                            the first dimension counts rows, for a signature with one input
    .npz                            one array an input, by name, and one of labels
    IDX images (…idx3…[.gz])        MNIST's format; labels from the idx1 file of the same name beside it
    .jsonl                          one instance a line: a value, or an object of inputs by name, bytes as {"b64": …},
                                    and the label
    .csv[.gz], .tsv[.gz]            one column an input, by name, and one of labels; see `tables`
    .tfrecord                       tf.Examples, for a signature that takes them; see `tables`

The array, key, column or feature of the labels is called `label` or `labels`, or what `open_rows` is told.

Rows are light: a row's data is read when `load` is called, which happens in the threads that send the requests.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from moxserve.client.calls import Array
from moxserve.client.fit import fit_tensor
from moxserve.errors import DataError, UsageError, did_you_mean
from moxserve.file.idx import read_idx
from moxserve.file.labels import LABELS_FILE, read_labels
from moxserve.predict.images import array_to_input, file_to_input, image_form, is_image
from moxserve.types import Signature, TensorSpec

__all__ = [
    "LABEL_KEYS",
    "Label",
    "Row",
    "Rows",
    "check_label",
    "fit_row",
    "label_key",
    "only_input",
    "open_rows",
    "row_spec",
    "to_label",
]

_EXPECTED = (
    "a folder of pictures, a picture, .npy, .npz, .jsonl, .csv, .tsv, .tfrecord, or an IDX image file (.gz or not)"
)
LABEL_KEYS = ("label", "labels")


@dataclass(frozen=True, slots=True)
class Label:
    """The truth about a row.

    Attributes:
        name: as the data set writes it; None when it knows only the number.
        index: number of the class; None when only the name is known.
    """

    name: str | None = None
    index: int | None = None

    @property
    def value(self) -> str | int | None:
        """What the output file shows: the name if there is one."""
        return self.index if self.name is None else self.name


@dataclass(frozen=True, slots=True)
class Row:
    """One row, not yet read.

    Attributes:
        name: where it comes from, such as `3/0017.png` or `eval.npy[12]`.
        load: reads it: inputs by alias, without the batch dimension. Raises DataError.
        label: None when unknown.
    """

    name: str
    load: Callable[[], Mapping[str, Array]]
    label: Label | None = None


@dataclass(frozen=True)
class Rows:
    """A data set.

    Attributes:
        source: what it is, in words.
        items: its rows in order.
        count: how many; None when that is known only at the end.
        classes: names by index, when the data set tells.
        classes_listed: they come from a labels.txt, so their order is meant.
    """

    source: str
    items: Iterator[Row]
    count: int | None = None
    classes: Sequence[str] = field(default_factory=tuple)
    classes_listed: bool = False


def open_rows(
    path: str | os.PathLike[str], signature: Signature, limit: int | None = None, label: str | None = None
) -> Rows:
    """Open a data set for a signature.

    Args:
        path: see the table of this module.
        signature: what the rows are made for.
        limit: only the first rows.
        label: name of the labels' array, key, column or feature; None: `label` or `labels`, if there is one.

    Raises:
        DataError: there is nothing there, or nothing that can be read; or there are no such labels.
        UsageError: the data set's kind does not fit the signature, or has no names.
    """
    name = os.fspath(path)
    opener = _named_opener(name)
    if opener is not None:
        rows = opener(name, signature, label)
    elif label is not None:
        raise UsageError(f"{name}: the label {label!r} is looked for in .npz, .jsonl, .csv, .tsv and .tfrecord files")
    else:
        rows = _opener(name)(name, signature)
    if limit is None:
        return rows
    count = limit if rows.count is None else min(limit, rows.count)
    return replace(rows, items=_first(rows.items, limit), count=count if rows.count is not None else None)


def _first(items: Iterator[Row], limit: int) -> Iterator[Row]:
    for _ in range(limit):
        try:
            yield next(items)
        except StopIteration:
            return


def label_key(names: Iterable[str], signature: Signature, wanted: str | None, path: str) -> str | None:
    """Return which of the names that a data set has is that of the labels; None when none is.

    Raises:
        DataError: there is no such name as wanted.
        UsageError: it is an input of the signature.
    """
    known = list(names)
    if wanted is None:
        return next((key for key in LABEL_KEYS if key in known and key not in signature.inputs), None)
    check_label(signature, wanted)
    if wanted not in known:
        raise DataError(f"{path} has no label {wanted!r}; {did_you_mean(wanted, known, 20)}")
    return wanted


def check_label(signature: Signature, wanted: str) -> None:
    """Raise UsageError if the label is an input."""
    if wanted in signature.inputs:
        raise UsageError(f"the label {wanted!r} is an input of signature {signature.name!r}")


def _named_opener(path: str) -> Callable[[str, Signature, str | None], Rows] | None:
    """Return what opens a data set whose parts have names, the label's among them."""
    lower = path.lower()
    for suffixes, opener in (
        ((".npz",), _npz),
        ((".jsonl", ".ndjson"), _jsonl),
        ((".csv", ".csv.gz", ".tsv", ".tsv.gz"), _csv),
        ((".tfrecord", ".tfrecords"), _tfrecord),
    ):
        if lower.endswith(suffixes) and os.path.isfile(path):
            return opener
    return None


def _opener(path: str) -> Callable[[str, Signature], Rows]:
    if os.path.isdir(path):
        return _image_folder
    if not os.path.exists(path):
        raise DataError(f"no such file or directory: {path!r}", hint=f"expected {_EXPECTED}")
    lower = path.lower()
    for suffixes, opener in (
        ((".npy",), _npy),
        (("-ubyte", "-ubyte.gz", ".idx", ".idx.gz", ".idx3", ".idx3.gz"), _idx),
    ):
        if lower.endswith(suffixes):
            return opener
    if is_image(os.path.basename(path)):
        return _one_image
    raise DataError(f"{path}: unknown kind of data set", hint=f"expected {_EXPECTED}")


def only_input(signature: Signature, what: str) -> TensorSpec:
    """Return the input of a signature that has one.

    Raises:
        UsageError: it has several.
    """
    if len(signature.inputs) != 1:
        raise UsageError(
            f"{what} holds one input; signature {signature.name!r} has {len(signature.inputs)}",
            hint=f"expected {signature}; give several inputs as .npz or .jsonl",
        )
    return next(iter(signature.inputs.values()))


def _picture_input(signature: Signature, what: str) -> TensorSpec:
    if signature.method.endswith(("/classify", "/regress")):
        raise UsageError(
            f"signature {signature.name!r} takes serialized tf.Example records, not pictures ({what})",
            hint="choose a predict signature, such as --signature serving_default",
        )
    return only_input(signature, what)


def row_spec(spec: TensorSpec) -> TensorSpec:
    """Return what one row of an input looks like: the spec without its first dimension."""
    return replace(spec, shape=None if spec.shape is None else tuple(spec.shape[1:]))


# ---- pictures


def _one_image(path: str, signature: Signature) -> Rows:
    form = image_form(_picture_input(signature, path))
    row = Row(os.path.basename(path), lambda: {form.spec.name: file_to_input(path, form)})
    return Rows("a picture", iter([row]), 1)


def _image_folder(base: str, signature: Signature) -> Rows:
    form = image_form(_picture_input(signature, f"a folder of pictures ({base})"))
    listing = _list_images(base)
    folders = sorted({folder for folder, _ in listing if folder})
    classes, listed = _classes(base, folders)
    index = {name: number for number, name in enumerate(classes)}

    def load(path: str) -> Mapping[str, Array]:
        return {form.spec.name: file_to_input(path, form)}

    def rows() -> Iterator[Row]:
        for folder, name in listing:
            path = os.path.join(base, folder, name)
            label = Label(folder, index[folder]) if folder else None
            yield Row(os.path.join(folder, name), partial(load, path), label)

    kind = f"{len(folders)} class folders of pictures" if folders else "a folder of pictures"
    return Rows(kind, rows(), len(listing), classes, listed)


def _list_images(base: str) -> list[tuple[str, str]]:
    """Return (class folder or "", file name), sorted."""
    found = [("", name) for name in sorted(os.listdir(base)) if is_image(name)]
    folders = [d for d in sorted(os.listdir(base)) if os.path.isdir(os.path.join(base, d)) and not d.startswith(".")]
    for folder in folders:
        found += [(folder, name) for name in sorted(os.listdir(os.path.join(base, folder))) if is_image(name)]
    if not found:
        below = f"; it holds the folders {', '.join(folders[:5])}, without pictures directly in them" if folders else ""
        raise DataError(f"{base}: no pictures in it or in its class folders{below}")
    return found


def _classes(base: str, folders: Sequence[str]) -> tuple[Sequence[str], bool]:
    path = os.path.join(base, LABELS_FILE)
    if not os.path.exists(path):
        return folders, False
    classes = read_labels(path, bare=True)
    unknown = [folder for folder in folders if folder not in classes]
    if unknown:
        raise DataError(f"{path}: lacks the folder {unknown[0]!r}; it has {', '.join(classes)}")
    return classes, True


# ---- arrays


def fit_row(value: Any, spec: TensorSpec, where: str) -> Array:
    """Make one row of an input of a value.

    Raises:
        DataError: it does not fit; with `where`.
    """
    try:
        return fit_tensor(value, row_spec(spec))
    except UsageError as error:
        raise DataError(
            f"{where}: {error.message}", hint=error.hint if "astype" in (error.hint or "") else None
        ) from None


def _load_numpy(path: str) -> Any:
    try:
        # A single array is read row by row, by the threads that send it.
        return np.load(path, mmap_mode="r" if path.lower().endswith(".npy") else None, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as a NumPy file ({error})") from None


def _array_rows(path: str, arrays: Mapping[str, Array], signature: Signature, labels: Array | None) -> Rows:
    base = os.path.basename(path)
    counts = {name: len(array) if array.ndim else None for name, array in arrays.items()}
    if labels is not None:
        counts["labels"] = len(labels) if labels.ndim else None
    count = next(iter(counts.values()))
    if count is None or any(other != count for other in counts.values()):
        raise DataError(f"{path}: expected arrays with the same number of rows; got {counts}")

    def load(number: int) -> Mapping[str, Array]:
        where = f"{base}[{number}]"
        return {name: fit_row(array[number], signature.inputs[name], where) for name, array in arrays.items()}

    def rows() -> Iterator[Row]:
        for number in range(count):
            label = None if labels is None else to_label(labels[number])
            yield Row(f"{base}[{number}]", partial(load, number), label)

    return Rows(f"arrays of {count} rows", rows(), count)


def to_label(value: Any) -> Label | None:
    """Return a label of a number or name; None for anything else."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return Label(name=value)
    return Label(index=value) if isinstance(value, int) and not isinstance(value, bool) else None


def _npy(path: str, signature: Signature) -> Rows:
    spec = only_input(signature, path)
    return _array_rows(path, {spec.name: np.asarray(_load_numpy(path))}, signature, None)


def _npz(path: str, signature: Signature, label: str | None) -> Rows:
    with _load_numpy(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    key = label_key(arrays, signature, label, path)
    labels = arrays.pop(key) if key else None
    if len(arrays) == 1 and len(signature.inputs) == 1:
        arrays = {next(iter(signature.inputs)): next(iter(arrays.values()))}
    if set(arrays) != set(signature.inputs):
        raise DataError(
            f"{path}: holds {', '.join(sorted(arrays)) or 'no arrays'}; expected {', '.join(signature.inputs)}",
            hint=f"expected {signature}",
        )
    return _array_rows(path, arrays, signature, labels)


# ---- IDX


def _idx(path: str, signature: Signature) -> Rows:
    form = image_form(_picture_input(signature, path))
    images = read_idx(path, 3)
    base = os.path.basename(path)
    beside = os.path.join(os.path.dirname(path), base.replace("images", "labels").replace("idx3", "idx1"))
    labels = read_idx(beside, 1) if beside != path and os.path.exists(beside) else None
    if labels is not None and len(labels) != len(images):
        raise DataError(f"{beside}: {len(labels)} labels for {len(images)} images")

    def load(number: int) -> Mapping[str, Array]:
        return {form.spec.name: array_to_input(images[number], form)}

    def rows() -> Iterator[Row]:
        for number in range(len(images)):
            label = None if labels is None else Label(index=int(labels[number]))
            yield Row(f"{base}[{number}]", partial(load, number), label)

    return Rows(f"IDX images, {len(images)} of them", rows(), len(images))


# ---- what has modules of its own


def _csv(path: str, signature: Signature, label: str | None) -> Rows:
    from moxserve.predict.tables import open_csv

    return open_csv(path, signature, label)


def _tfrecord(path: str, signature: Signature, label: str | None) -> Rows:
    from moxserve.predict.tables import open_examples

    return open_examples(path, signature, label)


def _jsonl(path: str, signature: Signature, label: str | None) -> Rows:
    from moxserve.predict.json_lines import open_json_lines

    return open_json_lines(path, signature, label)
