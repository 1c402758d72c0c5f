"""A real survey as a table: Fair's data on 6,366 married women, with one fixed train/eval split.

    OUT/
      dataset.json        what this is, where it comes from, how it is split, what the columns mean
      labels.txt          `0: no`, `1: yes`: the classes of the column `affair`
      occupations.txt     the values of `occupation` and `occupation_husb`, one a line: a vocabulary file
      train.csv           5,000 rows, with a header
      eval.csv            1,366 rows
      train.parquet  eval.parquet         the same rows
      train.tfrecord eval.tfrecord        the same rows, a tf.Example each

Every value is the survey's own; only the two occupations are written as names instead of as the survey's numbers, and
`affair` says whether `affairs` (time spent, which it must not be predicted from) is more than 0. The same installation
writes the same bytes each time. The directory appears at once or not at all.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moxserve.data.folder import check_formats, labels_text, publish_data_set, write_bytes
from moxserve.errors import MissingExtraError

__all__ = ["COLUMNS", "EVAL_SAMPLES", "FORMATS", "LABELS", "OCCUPATIONS", "Survey", "load_survey", "write_table"]

FORMATS = ("csv", "parquet", "tfrecord")
LABELS = ("no", "yes")
EVAL_SAMPLES = 1366
_SPLIT_SEED = 0
# The survey's numbers 1 to 6, in words of one piece.
OCCUPATIONS = ("student", "farming", "white-collar", "skilled", "managerial", "professional")
COLUMNS: Mapping[str, str] = {
    "rate_marriage": "how the marriage is rated: 1 very poor to 5 very good",
    "age": "age in years, the middle of a range",
    "yrs_married": "years married, the middle of a range",
    "children": "number of children, 5.5 for more than five",
    "religious": "1 not religious to 4 strongly",
    "educ": "years of education: 9 grade school to 20 advanced degree",
    "occupation": "her occupation",
    "occupation_husb": "her husband's occupation",
    "affairs": "time spent in affairs; what `affair` is made of",
    "affair": "whether there was any: no or yes",
}
_WHOLE = ("rate_marriage", "religious")
_NAMED = ("occupation", "occupation_husb")

Column = npt.NDArray[Any]


@dataclass(frozen=True)
class Survey:
    """Both parts of the survey: column name -> values of `[n]` rows, int64, float64 or text (object)."""

    train: Mapping[str, Column]
    eval: Mapping[str, Column]

    def parts(self) -> Mapping[str, Mapping[str, Column]]:
        """Return both parts by name."""
        return {"train": self.train, "eval": self.eval}


def load_survey() -> Survey:
    """Load the survey and split it: the classes of `affair` in equal proportion in both parts, rows in their order.

    Raises:
        MissingExtraError: statsmodels or scikit-learn is not installed.
    """
    try:
        from sklearn.model_selection import train_test_split
        from statsmodels.datasets import fair
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        raise MissingExtraError(
            "scikit-learn" if package == "sklearn" else "statsmodels", "data", "the table"
        ) from None
    columns = _columns(fair.load_pandas().data)
    rows = np.arange(len(columns["affair"]))
    train, evaluation = train_test_split(
        rows, test_size=EVAL_SAMPLES, stratify=columns["affair"], random_state=_SPLIT_SEED, shuffle=True
    )
    parts = [{name: values[part] for name, values in columns.items()} for part in (np.sort(train), np.sort(evaluation))]
    return Survey(*parts)


def _columns(frame: Any) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    for name in COLUMNS:
        if name == "affair":
            columns[name] = np.array(LABELS, object)[(columns["affairs"] > 0).astype(int)]
        elif name in _NAMED:
            columns[name] = np.array(OCCUPATIONS, object)[frame[name].to_numpy().astype(int) - 1]
        else:
            columns[name] = frame[name].to_numpy().astype(np.int64 if name in _WHOLE else np.float64)
    return columns


def write_table(
    out: str | os.PathLike[str], formats: Sequence[str] = FORMATS, *, force: bool = False
) -> Mapping[str, Any]:
    """Write the survey under a directory, which appears complete or not at all.

    Args:
        out: the directory to make. It may exist when it is empty.
        formats: any of `csv`, `parquet`, `tfrecord`.
        force: replace an earlier data set at `out`. A directory that holds anything else is never replaced.

    Returns:
        What was written, as in `dataset.json`.

    Raises:
        UsageError: a format is unknown, or none was given.
        DataError: `out` is taken.
        MissingExtraError: statsmodels, scikit-learn or, for Parquet, pyarrow is not installed.
    """
    check_formats(formats, FORMATS)

    def make(folder: str) -> Mapping[str, Any]:
        survey = load_survey()
        write_bytes(os.path.join(folder, "labels.txt"), labels_text(LABELS))
        write_bytes(os.path.join(folder, "occupations.txt"), "".join(f"{name}\n" for name in OCCUPATIONS).encode())
        written = [name for name in FORMATS if name in formats]
        for name in written:
            for part, columns in survey.parts().items():
                _WRITERS[name](columns, os.path.join(folder, f"{part}.{name}"))
        return {
            "name": "table",
            "source": 'statsmodels.datasets.fair: Ray Fair, "A Theory of Extramarital Affairs", '
            "Journal of Political Economy, February 1978, 45-61",
            "licence": "included in statsmodels with permission of the author",
            "samples": {part: len(columns["affair"]) for part, columns in survey.parts().items()},
            "columns": dict(COLUMNS),
            "label": "affair",
            "labels": list(LABELS),
            "formats": written,
        }

    return publish_data_set(out, make, force=force)


def _write_csv(columns: Mapping[str, Column], path: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
    write_bytes(path, text.getvalue().encode())


def _write_parquet(columns: Mapping[str, Column], path: str) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError("pyarrow", "table", "Parquet") from None
    table = pa.table({name: pa.array(values.tolist()) for name, values in columns.items()})
    pq.write_table(table, path, row_group_size=1000)


def _write_tfrecord(columns: Mapping[str, Column], path: str) -> None:
    from moxserve.protocol.examples import write_examples

    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    write_examples(path, (dict(zip(columns, row, strict=True)) for row in rows))


_WRITERS: Mapping[str, Callable[[Mapping[str, Column], str], None]] = {
    "csv": _write_csv,
    "parquet": _write_parquet,
    "tfrecord": _write_tfrecord,
}
