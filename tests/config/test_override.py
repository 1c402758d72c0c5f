"""--set: what it changes, and what it refuses."""

# ruff: noqa: E501 - messages are asserted to the letter

from __future__ import annotations

import string
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moxserve.config.override import apply_overrides
from moxserve.config.tree import parse
from moxserve.errors import ConfigProblem


def _apply(text: str, *overrides: str) -> tuple[Any, list[str]]:
    problems: list[ConfigProblem] = []
    data = apply_overrides(parse(text, "f.yaml"), overrides, problems).data()
    return data, [str(p) for p in problems]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=2", {"a": {"b": 2}, "l": [1, 2]}),
        ("a.c=1e-3", {"a": {"b": 1, "c": 0.001}, "l": [1, 2]}),
        ("a.b=x=y", {"a": {"b": "x=y"}, "l": [1, 2]}),
        ("a.b=", {"a": {"b": None}, "l": [1, 2]}),
        ("a.b='5'", {"a": {"b": "5"}, "l": [1, 2]}),
        ("a.b=[1, x]", {"a": {"b": [1, "x"]}, "l": [1, 2]}),
        ("a={c: 3}", {"a": {"c": 3}, "l": [1, 2]}),
        ("n.m.k=true", {"a": {"b": 1}, "l": [1, 2], "n": {"m": {"k": True}}}),
        ("l.1=9", {"a": {"b": 1}, "l": [1, 9]}),
        ("a.b=http://h:80/x", {"a": {"b": "http://h:80/x"}, "l": [1, 2]}),
    ],
)
def test_values(override: str, expected: object):
    assert _apply("a: {b: 1}\nl: [1, 2]\n", override) == (expected, [])


def test_later_ones_win():
    assert _apply("a: 1", "a=2", "a=3") == ({"a": 3}, [])


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("a", "--set a: expected KEY=VALUE, such as run.max_number_of_steps=50"),
        ("=1", "--set =1: expected KEY=VALUE, such as run.max_number_of_steps=50"),
        ("a..b=1", "--set a..b=1: expected KEY=VALUE, such as run.max_number_of_steps=50"),
        ("a.b.c=1", "--set a.b.c=1: a.b.c: a.b is 1, no mapping; nothing can be set below it"),
        ("l.7=1", "--set l.7=1: l.7: l is a list of 2; expected an index below that, got '7'"),
        ("l.x=1", "--set l.x=1: l.x: l is a list of 2; expected an index below that, got 'x'"),
        ("a.b={x", "--set a.b={x: a.b: not YAML: expected ',' or '}', but got '<stream end>', while parsing a flow mapping that starts at line 1"),
    ],
)  # fmt: skip
def test_problems_name_the_override_and_leave_the_rest(override: str, problem: str):
    data, problems = _apply("a: {b: 1}\nl: [1, 2]\n", override)
    assert problems == [problem]
    assert data == {"a": {"b": 1}, "l": [1, 2]}


_keys = st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=4), min_size=1, max_size=4)
_leaf = st.none() | st.booleans() | st.integers(-999, 999) | st.text(string.ascii_letters + " :#'\"{}[],", max_size=10)


@given(_keys, _leaf)
def test_any_yaml_value_arrives(keys: list[str], value: object):
    written = yaml.safe_dump({"v": value}, default_flow_style=True, width=10**6).strip()[1:-1].partition(": ")[2]
    data, problems = _apply("{}", f"{'.'.join(keys)}={written}")
    assert problems == []
    for key in keys:
        data = data[key]
    assert data == value


@given(st.text(max_size=40))
def test_any_text_changes_something_or_is_a_problem(override: str):
    _, problems = _apply("a: {b: [1]}", override)
    assert all(p.startswith(f"--set {override}") for p in problems)
