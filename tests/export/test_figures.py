"""How far a form of a model is from its source, held against NumPy, and what is near enough."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moxserve.export.facts import Figures
from moxserve.export.figures import figures, judge, with_singles
from moxserve.export.manifest import Tolerance
from moxserve.export.tolerances import TOLERANCES, most_lost_rows, tolerance_for

RANDOM = np.random.default_rng(11)
SCORES = RANDOM.normal(size=(50, 8)).astype(np.float32)
LABELS = SCORES.argmax(1)


def one(got: np.ndarray, expected: np.ndarray):
    (found,) = figures({"y": got}, {"y": expected}).outputs
    return found


def test_errors_are_those_of_numpy() -> None:
    noise = RANDOM.normal(size=SCORES.shape).astype(np.float32) * 0.01
    found = one(SCORES + noise, SCORES)
    gap = (SCORES + noise).astype(np.float64) - SCORES
    assert found.max_abs_error == pytest.approx(np.abs(gap).max())
    assert found.max_rel_error == pytest.approx(np.abs(gap).max() / np.abs(SCORES).max())
    assert found.rel_l2 == pytest.approx(np.linalg.norm(gap) / np.linalg.norm(SCORES))
    assert found.sqnr_db == pytest.approx(-20 * np.log10(found.rel_l2))
    assert (found.dtype, found.equal_share, found.misplaced) == ("float32", None, 0)


def test_large_outputs_are_compared_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from moxserve.export import figures as module

    whole = one(SCORES * 1.1, SCORES)
    monkeypatch.setattr(module, "_CHUNK", 16)
    pieces = one(SCORES * 1.1, SCORES)
    assert pieces.rel_l2 == pytest.approx(whole.rel_l2)
    assert pieces.max_abs_error == whole.max_abs_error


def test_equal_answers() -> None:
    found = one(SCORES, SCORES.copy())
    assert (found.max_abs_error, found.rel_l2, found.sqnr_db) == (0.0, 0.0, 400.0)


def test_numbers_that_are_not_finite_count_where_they_differ() -> None:
    expected = np.float32([1.0, np.nan, np.inf, -np.inf, 2.0, 3.0])
    found = one(np.float32([1.0, np.nan, np.inf, np.inf, np.nan, 3.5]), expected)
    assert found.misplaced == 2
    assert found.max_abs_error == 0.5
    reasons = judge(Figures(rows=6, outputs=(found,)), "int8")
    assert "2 values are not finite" in reasons[0]


@pytest.mark.parametrize(
    ("got", "expected", "share"),
    [
        (np.int64([1, 2, 3, 4]), np.int64([1, 2, 3, 5]), 0.75),
        (np.array([b"a", b"b"], object), np.array([b"a", b"c"], object), 0.5),
        (np.array([True, False]), np.array([True, False]), 1.0),
    ],
)
def test_other_values_are_equal_or_not(got: np.ndarray, expected: np.ndarray, share: float) -> None:
    found = one(got, expected)
    assert (found.equal_share, found.max_abs_error) == (share, 0.0)


def test_sixteen_bits_complex_numbers_scalars_and_nothing() -> None:
    assert one(np.array([1.5], ml_dtypes.bfloat16), np.array([1.0], ml_dtypes.bfloat16)).max_abs_error == 0.5
    assert one(np.complex64([3 + 4j]), np.complex64([0j])).max_abs_error == 5.0
    assert one(np.float32(1.0), np.float32(2.0)).max_abs_error == 1.0
    assert one(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)).rel_l2 == 0.0


def test_what_cannot_be_compared_is_a_problem() -> None:
    expected = {"a": SCORES, "b": SCORES, "c": SCORES, "d": SCORES}
    got = {"a": SCORES[:, :2], "b": SCORES.astype(np.float64), "d": SCORES, "more": SCORES}
    found = figures(got, expected)
    assert found.problems == (
        "output 'a' is float32[50, 2] and should be float32[50, 8]",
        "output 'b' is float64[50, 8] and should be float32[50, 8]",
        "output 'c' is missing",
    )
    assert [o.output for o in found.outputs] == ["d"]
    assert judge(found, "float32") == found.problems


def test_choices_and_accuracy() -> None:
    got = SCORES.copy()
    got[:5] = -got[:5]
    found = figures({"p": got}, {"p": SCORES}, LABELS, "p")
    same = (got.argmax(1) == SCORES.argmax(1)).mean()
    five = [len(set(np.argsort(-a)[:5]) & set(np.argsort(-b)[:5])) / 5 for a, b in zip(got, SCORES, strict=True)]
    assert found.top1_agreement == pytest.approx(same)
    assert found.top5_agreement == pytest.approx(np.mean(five))
    assert (found.accuracy, found.source_accuracy) == (pytest.approx(same), 1.0)
    assert found.accuracy_drop == pytest.approx(1 - same)
    assert found.scores == "p"


def test_choices_that_are_equally_good_agree() -> None:
    expected = np.float32([[0.5, 0.5, 0.0], [1.0, 1.0 - 1e-7, 0.0]])
    found = figures({"p": expected[:, [1, 0, 2]]}, {"p": expected}, None, "p")
    assert found.top1_agreement == 1.0
    assert found.top5_agreement is None  # of three classes the first five are no news


def test_scores_that_are_no_numbers_choose_nothing() -> None:
    got = SCORES.copy()
    got[0] = np.nan
    got[1, LABELS[1]] = np.nan
    found = figures({"p": got}, {"p": SCORES}, LABELS, "p")
    assert found.top1_agreement == pytest.approx(48 / 50)


def test_where_the_source_has_no_choice_none_is_the_right_one() -> None:
    """Rows with a NaN in them answer NaN in every form; that is no reason to drop one."""
    scores = SCORES.copy()
    scores[3] = np.nan
    assert figures({"p": scores}, {"p": scores}, None, "p").top1_agreement == 1.0
    assert judge(figures({"p": scores}, {"p": scores}, None, "p"), "float32") == ()
    assert figures({"p": SCORES}, {"p": scores}, None, "p").top1_agreement == pytest.approx(49 / 50)


@pytest.mark.parametrize("scores", ["", "unknown", "n"])
def test_without_scores_there_are_no_choices(scores: str) -> None:
    outputs = {"p": SCORES, "n": LABELS}
    found = figures(outputs, outputs, LABELS, scores)
    assert (found.top1_agreement, found.accuracy, found.scores) == (None, None, "")


def test_single_rows_count_too() -> None:
    wrong = SCORES[:4].copy()
    wrong[2] += 1
    found = with_singles(figures({"p": SCORES}, {"p": SCORES}), {"p": wrong}, {"p": SCORES})
    assert (found.single_rows, found.max_abs_error) == (4, 1.0)
    (reason,) = judge(found, "float32")
    assert reason.startswith("one row at a time, output 'p': relative error")
    missing = with_singles(figures({"p": SCORES}, {"p": SCORES}), {"q": wrong}, {"p": SCORES})
    assert missing.problems == ("one row at a time, output 'p' is missing",)


def off_by(rel_l2: float) -> Figures:
    direction = RANDOM.normal(size=SCORES.shape)
    size = rel_l2 * np.linalg.norm(SCORES) / np.linalg.norm(direction)
    got = SCORES + size * direction
    return figures({"y": got}, {"y": SCORES.astype(np.float64)})


@pytest.mark.parametrize("precision", sorted(TOLERANCES))
def test_each_precision_has_its_limit(precision: str) -> None:
    limit = tolerance_for(precision).rel_l2
    assert limit is not None
    assert judge(off_by(0.9 * limit), precision) == ()
    (reason,) = judge(off_by(1.1 * limit), precision)
    assert f"at most {limit:g} is allowed for {precision}" in reason
    assert judge(off_by(1.1 * limit), precision, tolerance=Tolerance(rel_l2=2 * limit)) == ()


def test_rewrites_in_float32_choose_the_same() -> None:
    got = SCORES.copy()
    first, second = np.argsort(-got[0])[:2]
    middle = (got[0, first] + got[0, second]) / 2
    expected = SCORES.copy()
    expected[0, first], expected[0, second] = middle + 1e-4, middle
    got[0, first], got[0, second] = middle, middle + 1e-4
    found = figures({"p": got}, {"p": expected}, None, "p")
    assert judge(found, "float32") == ("98.00% of the rows have the source's first choice, not 100%",)
    assert judge(found, "bfloat16") == ()
    assert judge(found, "", tolerance=Tolerance(rel_l2=0.1, agreement=0.9)) == ()


def chosen(rows: int, wrong: int, labels: bool) -> Figures:
    expected = np.eye(4, dtype=np.float32)[np.arange(rows) % 4]
    got = expected.copy()
    got[:wrong] = np.roll(expected[:wrong], 1, axis=1) * 0.01 + expected[:wrong] * 0.0
    return figures({"p": got}, {"p": expected}, np.arange(rows) % 4 if labels else None, "p")


@pytest.mark.parametrize("labels", [True, False])
def test_int8_may_lose_some_rows(labels: bool) -> None:
    assert judge(chosen(400, 4, labels), "int8") == ()
    (reason,) = judge(chosen(400, 5, labels), "int8")
    assert "at most 1.00% is allowed" in reason
    assert ("accuracy 98.75% instead of 100.00% on 400 rows" in reason) == labels
    assert judge(chosen(400, 5, labels), "dynamic", max_drop=0.02) == ()
    assert judge(chosen(400, 5, labels), "int8", max_drop=None) == ()
    # Of 64 rows one is more than a hundredth, and the least that can be lost.
    assert judge(chosen(64, 1, labels), "int8") == ()
    assert judge(chosen(64, 2, labels), "int8")
    assert judge(chosen(64, 1, labels), "int8", max_drop=0.0)


@pytest.mark.parametrize(("share", "rows", "most"), [(0.01, 100, 1), (0.01, 101, 2), (0.0, 100, 0), (0.29, 100, 29)])
def test_rows_are_lost_whole(share: float, rows: int, most: int) -> None:
    assert most_lost_rows(share, rows) == most


def test_better_than_the_source_loses_nothing() -> None:
    expected = np.float32([[0.6, 0.4]] * 10)
    found = figures({"p": expected[:, ::-1] * 0.999}, {"p": expected}, np.ones(10, int), "p")
    assert found.accuracy_drop == -1.0
    assert not any("loses" in reason for reason in judge(found, "int8"))


_NUMBERS = hnp.arrays(
    st.sampled_from([np.float64, np.float32, np.float16]),
    hnp.array_shapes(min_dims=2, max_dims=3, max_side=7),
    elements=st.floats(width=16, allow_nan=True, allow_infinity=True),
)


@pytest.mark.slow
@given(_NUMBERS, st.data())
def test_every_figure_is_finite_and_json(expected: np.ndarray, data: st.DataObject) -> None:
    got = data.draw(hnp.arrays(expected.dtype, expected.shape, elements=st.floats(width=16)))
    if expected.dtype == np.float64:
        got, expected = got * 1e300, expected * 1e304
    labels = np.zeros(len(expected), int)
    found = figures({"p": got}, {"p": expected}, labels, "p")
    text = found.model_dump_json()
    assert Figures.model_validate_json(text) == found
    numbers = [v for o in json.loads(text)["outputs"] for v in o.values() if isinstance(v, float)]
    assert np.isfinite(numbers).all()
    for agreement in (found.top1_agreement, found.top5_agreement):
        assert agreement is None or 0 <= agreement <= 1
    judge(found, "float32")
