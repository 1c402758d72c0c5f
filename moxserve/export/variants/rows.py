"""Puts real rows where converters and probes read them: some to find ranges with, the others to judge with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moxserve.export.sources.base import StagedModel
from moxserve.export.variants.work import Rows

__all__ = ["RowSets", "save_rows", "split_rows"]


@dataclass(frozen=True)
class RowSets:
    """The real rows of an export.

    Attributes:
        calibration: to find ranges with.
        evaluation: to judge with.
        note: what the user should know about them; empty when there is nothing.
    """

    calibration: Rows
    evaluation: Rows
    note: str = ""


def split_rows(model: StagedModel, calibration_rows: int, folder: str) -> RowSets:
    """Save a model's rows, some of them for calibration where there are enough for both.

    A range that was found on the very rows that it is judged by looks better than it is, and a judgement on a few rows
    says little: calibration gets half of the rows at most. They are taken at equal distances, since data often lies in
    order, such as class by class.

    Args:
        model: with its rows and the source's answers.
        calibration_rows: how many are wanted for calibration.
        folder: not there yet.
    """
    count = model.row_count
    if not count:
        empty = save_rows(os.path.join(folder, "rows"), {})
        return RowSets(empty, empty, "no real rows: variants cannot be compared on any, nor int8 be calibrated")
    apart = count > calibration_rows
    wanted = min(calibration_rows, count // 2) if apart else count
    chosen = np.zeros(count, bool)
    chosen[(np.arange(wanted) + 1) * count // max(1, wanted) - 1] = True
    evaluation = _part(model, ~chosen if apart else chosen, os.path.join(folder, "evaluation"))
    calibration = _part(model, chosen, os.path.join(folder, "calibration"))
    note = ""
    if not apart:
        note = f"only {count} real rows: int8 is calibrated on the rows that it is judged by"
    elif calibration.count < calibration_rows:
        note = f"only {count} real rows: int8 is calibrated on {calibration.count} of them, not on {calibration_rows}"
    return RowSets(calibration, evaluation, note)


def _part(model: StagedModel, rows: np.ndarray, folder: str) -> Rows:
    return save_rows(
        folder,
        {alias: array[rows] for alias, array in model.rows.items()},
        {alias: array[rows] for alias, array in model.expected.items()},
        labels=None if model.labels is None else model.labels[rows],
        scores=model.scores if model.scores in model.expected else "",
    )


def save_rows(
    folder: str,
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray] | None = None,
    *,
    labels: np.ndarray | None = None,
    scores: str = "",
) -> Rows:
    """Write arrays into a folder, one file each.

    Args:
        folder: not there yet.
        inputs: by alias, `[n, ...]` each.
        outputs: the source's answers, by alias, `[n, ...]` each.
        labels: `[n]` whole numbers.
        scores: alias of the output whose largest entry is the choice.
    """
    os.makedirs(folder)
    groups = (("input", inputs), ("output", outputs or {}), ("labels", {} if labels is None else {"": labels}))
    names: dict[str, dict[str, str]] = {}
    for kind, arrays in groups:
        # Aliases may hold anything; files are numbered.
        names[kind] = {alias: f"{kind}_{i}.npy" for i, alias in enumerate(arrays)}
        for alias, array in arrays.items():
            np.save(os.path.join(folder, names[kind][alias]), array, allow_pickle=array.dtype == object)
    return Rows(
        folder=folder,
        count=len(next(iter(inputs.values()))) if inputs else 0,
        inputs=names["input"],
        outputs=names["output"],
        labels=names["labels"].get("", ""),
        scores=scores,
    )
