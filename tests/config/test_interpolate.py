"""${VARIABLES} in values: forms, types, places of problems."""

# ruff: noqa: E501 - messages are asserted to the letter

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxserve.config.interpolate import InterpolationError, interpolate, interpolate_text
from moxserve.config.tree import parse
from moxserve.errors import ConfigProblem


def _read(text: str, environment: dict[str, str]) -> tuple[object, list[ConfigProblem]]:
    problems: list[ConfigProblem] = []
    return interpolate(parse(text, "f.yaml"), environment, problems).data(), problems


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${A}", "1"), ("x${A}y${A}", "x1y1"), ("${N:-d}", "d"), ("${A:-d}", "1"), ("${E:-d}", "d"), ("${E}", ""), ("${N:-}", ""),
        ("$A", "$A"), ("$", "$"), ("a$$b", "a$$b"), ("$${A}", "${A}"), ("$${", "${"), ("${N:-a b/c:d}", "a b/c:d"), ("}", "}"),
    ],
)  # fmt: skip
def test_forms(text: str, expected: str):
    assert interpolate_text(text, {"A": "1", "E": ""}) == expected


def test_unquoted_values_take_their_type_and_quoted_ones_stay_text():
    text = "a: ${N:-32}\nb: '${N:-32}'\nc: ${N:-true}\nd: ${N:-}\ne: [\"${X}\"]\n"
    assert _read(text, {"X": "1e-3"}) == ({"a": 32, "b": "32", "c": True, "d": None, "e": ["1e-3"]}, [])


def test_values_are_not_filled_in_twice():
    assert interpolate_text("${A}", {"A": "${B}", "B": "x"}) == "${B}"


def test_problems_have_the_place_of_the_reference():
    data, problems = _read("a:\n  b: data/${NOPE}/x\n  c: '${}'\n", {"NOPES": "1"})
    assert data == {"a": {"b": "data/${NOPE}/x", "c": "${}"}}
    assert [str(p) for p in problems] == [
        "f.yaml:2:11: a.b: environment variable NOPE is not set and has no default; did you mean 'NOPES'? "
        "(a default is written ${NOPE:-value})\n      b: data/${NOPE}/x\n              ^",
        "f.yaml:3:7: a.c: expected ${NAME} or ${NAME:-default}; write $${ for a literal ${\n      c: '${}'\n          ^",
    ]


@given(st.text())
def test_text_without_references_is_left_alone(text: str):
    if "${" not in text:
        assert interpolate_text(text, {}) == text


@given(st.text())
def test_escaping_gives_any_text_back(text: str):
    # A `$` right before `${` would read as an escape by itself; YAML authors quote that as $$${.
    if "$${" not in text:
        assert interpolate_text(text.replace("${", "$${"), {}) == text


@given(st.text(st.characters(exclude_characters="}"), max_size=20), st.text(max_size=20))
def test_default_and_value_arrive_as_they_are(default: str, value: str):
    assert interpolate_text(f"<${{N:-{default}}}>", {}) == f"<{default}>"
    assert interpolate_text("<${N}>", {"N": value}) == f"<{value}>"


@given(st.text(max_size=40))
def test_never_anything_but_text_or_interpolation_error(text: str):
    try:
        interpolate_text(text, {"A": "1"})
    except InterpolationError as error:
        start = text[error.offset : error.offset + 2]
    else:
        start = "${"
    assert start == "${"
