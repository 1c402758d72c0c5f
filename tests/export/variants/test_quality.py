"""What int8 loses, what patterns match, and the search for the operations that stay in floating point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxserve.errors import ExportError, UsageError
from moxserve.export.variants.quality import allowed_loss, criterion_of, keep_in_float, loss_of, matching
from moxserve.export.variants.work import Rows


def _rows(folder: Path, labels: Any = None, scores: str = "", **outputs: np.ndarray) -> Rows:
    for name, array in outputs.items():
        np.save(folder / f"{name}.npy", array)
    if labels is not None:
        np.save(folder / "labels.npy", labels)
    count = len(next(iter(outputs.values())))
    files = {name: f"{name}.npy" for name in outputs}
    return Rows(str(folder), count, {}, files, "labels.npy" if labels is not None else "", scores)


def test_loss_of_accuracy_counts_labels(tmp_path: Path) -> None:
    source = np.eye(4, dtype=np.float32)
    rows = _rows(tmp_path, np.array([0, 1, 2, 0]), "p", p=source)
    assert criterion_of(rows) == "accuracy"
    assert loss_of({"p": source}, rows) == 0.0
    assert loss_of({"p": source[[3, 1, 2, 3]]}, rows) == 0.25
    assert loss_of({"p": source[[0, 1, 2, 0]]}, rows) == -0.25


def test_loss_of_agreement_and_scores_that_are_no_numbers(tmp_path: Path) -> None:
    source = np.eye(4, dtype=np.float32)
    rows = _rows(tmp_path, None, "p", p=source)
    assert criterion_of(rows) == "agreement"
    assert loss_of({"p": source * 0.1 + 0.5}, rows) == 0.0
    broken = source.copy()
    broken[0, 0] = np.nan
    assert loss_of({"p": broken}, rows) == 0.25


def test_loss_of_without_scores_takes_the_relative_error_of_any_output(tmp_path: Path) -> None:
    y = np.array([[3.0, 4.0], [0.0, 0.0], [1.0, np.nan]], np.float32)
    n = np.array([1, 2, 3])
    rows = _rows(tmp_path, None, y=y, n=n)
    assert criterion_of(rows) == "relative error"
    assert loss_of({"y": y, "n": n}, rows) == 0.0
    assert loss_of({"y": y + np.float32([[0.3, 0.3], [0, 0], [0, 0]]), "n": n}, rows) == 0.0  # 0.42 of 5
    assert loss_of({"y": y + np.float32([[0.4, 0.4], [0, 0], [0, 0]]), "n": n}, rows) == pytest.approx(1 / 3)
    assert loss_of({"y": np.nan_to_num(y), "n": n}, rows) == pytest.approx(1 / 3)
    assert loss_of({"y": y, "n": n + np.array([0, 1, 0])}, rows) == pytest.approx(1 / 3)


def test_loss_of_refuses_what_it_cannot_compare(tmp_path: Path) -> None:
    rows = _rows(tmp_path, None, y=np.zeros((3, 2), np.float32))
    with pytest.raises(ExportError, match=r"output 'y' is missing; the variant gives z"):
        loss_of({"z": np.zeros((3, 2))}, rows)
    with pytest.raises(ExportError, match=r"is \[3, 1\] and should be \[3, 2\]"):
        loss_of({"y": np.zeros((3, 1))}, rows)
    assert loss_of({}, Rows(str(tmp_path))) == 0.0


def test_allowed_loss_is_counted_in_whole_rows(tmp_path: Path) -> None:
    rows = _rows(tmp_path, None, y=np.zeros((64, 1)))
    assert allowed_loss(0.01, rows) == 1 / 64
    assert allowed_loss(0.0, rows) == 0.0
    assert allowed_loss(0.03, rows) == 2 / 64
    assert allowed_loss(1.0, rows) == 1.0
    assert allowed_loss(0.5, Rows(str(tmp_path))) == 0.5


def test_matching_takes_either_name_and_refuses_patterns_without_a_match() -> None:
    names = {"Conv_1": ["block1/conv/Conv2D"], "Conv_2": ["block2/conv/Conv2D"], "Gemm_3": ["fc/MatMul", "fc/BiasAdd"]}
    assert matching(["block?/conv/*", "Gemm_*"], names) == {
        "Conv_1": "block?/conv/*", "Conv_2": "block?/conv/*", "Gemm_3": "Gemm_*",
    }  # fmt: skip
    assert matching(["fc/*", "Gemm_3"], names) == {"Gemm_3": "fc/*"}
    with pytest.raises(UsageError, match=r"--exclude 'fc/Matmul' matches no operation .*did you mean 'fc/MatMul'"):
        matching(["fc/Matmul"], names)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=60), st.floats(0, 1))
def test_keep_in_float_finds_the_shortest_run_within_the_limit(costs: list[float], share: float) -> None:
    """Losses that add up: what is kept in floating point costs nothing more."""
    ranked = [str(i) for i in np.argsort(costs)[::-1]]
    total = {kept: sum(sorted(costs, reverse=True)[kept:]) for kept in range(len(costs) + 1)}
    limit = share * total[0]
    makes: list[int] = []

    def loss_with(kept: Sequence[str]) -> float:
        assert list(kept) == ranked[: len(kept)]
        makes.append(len(kept))
        return total[len(kept)]

    least = next(kept for kept in total if total[kept] <= limit)
    if least == len(costs):
        with pytest.raises(ExportError, match="int8 loses"):
            keep_in_float(lambda: ranked, loss_with, limit)
        return
    found = keep_in_float(lambda: ranked, loss_with, limit)
    assert found.kept == tuple(ranked[:least])
    assert found.loss == total[least] <= limit
    assert [step.kept for step in found.steps] == makes
    assert len(makes) == len(set(makes)) <= 2 * np.log2(len(costs)) + 3


def test_keep_in_float_makes_no_ranking_when_int8_is_good_enough() -> None:
    found = keep_in_float(lambda: pytest.fail("ranked without need"), lambda kept: 0.004, 0.01)
    assert found.as_json() == {"kept": [], "loss": 0.004, "steps": [{"kept": 0, "loss": 0.004}]}
