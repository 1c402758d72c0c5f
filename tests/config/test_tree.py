"""YAML with places: scalars, duplicates, aliases, merges, and one clear problem for what is not YAML."""

# ruff: noqa: E501 - messages are asserted to the letter

from __future__ import annotations

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moxserve.config.dump import to_yaml
from moxserve.config.tree import format_value, parse, scalar
from moxserve.errors import ConfigError


def _problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "f.yaml")
    return [str(p) for p in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("-7", -7), ("0x1F", 31), ("0o17", 15), ("017", 17), ("1e-3", 0.001), ("1.5", 1.5), (".5", 0.5), ("-.inf", float("-inf")),
        ("true", True), ("FALSE", False), ("null", None), ("~", None), ("", None),
        ("no", "no"), ("on", "on"), ("yes", "yes"), ("12:30", "12:30"), ("2024-01-01", "2024-01-01"), ("1_000", "1_000"),
        ("a b", "a b"), ("1.2.3", "1.2.3"), ("e5", "e5"),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text: str, value: object):
    got = scalar(text)
    assert got == value
    assert type(got) is type(value)


def test_places():
    root = parse("a: 1\nb:\n  - x\n  - {c: 'y'}\n", "f.yaml")
    inner = root.child("b").child(1).child("c")
    assert (inner.value, inner.place.line, inner.place.column, inner.place.source_line) == ("y", 4, 9, "  - {c: 'y'}")
    assert (inner.key_place.line, inner.key_place.column) == (4, 6)
    assert (inner.plain, root.child("a").plain) == (False, True)


def test_duplicate_keys_are_all_told():
    assert _problems("a: 1\nb: {c: 1, c: 2}\na: 3\n") == [
        "f.yaml:2:11: key 'c' is given twice, first on line 2\n    b: {c: 1, c: 2}\n              ^",
        "f.yaml:3:1: key 'a' is given twice, first on line 1\n    a: 3\n    ^",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:\n\tb: 1\n", "f.yaml:2:1: not YAML: a tab stands where YAML allows only spaces\n     b: 1\n    ^"),
        (
            "a: {b: 1\nc: 2\n",
            "f.yaml:2:2: not YAML: expected ',' or '}', but got ':', while parsing a flow mapping that starts at line 1\n"
            "    c: 2\n     ^",
        ),
        ("a: 1\n---\nb: 2\n", "f.yaml:2:1: not YAML: but found another document, expected a single document in the stream that starts at line 1\n    ---\n    ^"),
        ("a: \x01", "f.yaml:1:4: not YAML: character U+0001 is not allowed"),
        ("a: !!python/name:os.system x", "f.yaml:1:4: tag !!python/name:os.system is not allowed; write plain values\n    a: !!python/name:os.system x\n       ^"),
        ("a: !!int x", "f.yaml:1:4: 'x' is no int, as its tag says\n    a: !!int x\n       ^"),
        ("[1]: 2", "f.yaml:1:1: a key must be text, not a list or a mapping\n    [1]: 2\n    ^"),
        ("a: &x [*x]", "f.yaml:1:4: an alias refers to a value that contains it\n    a: &x [*x]\n       ^"),
        ("<<: 1", "f.yaml:1:5: << merges mappings only\n    <<: 1\n        ^"),
    ],
)  # fmt: skip
def test_what_is_not_allowed(text: str, expected: str):
    assert _problems(text) == [expected]


@pytest.mark.slow
def test_deep_nesting_is_a_problem_not_a_crash():
    assert _problems("[" * 5000) == ["f.yaml: values are nested too deeply"]


def test_aliases_and_merges():
    root = parse("base: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}\nlist: {<<: [{x: 1}, {x: 2, z: 4}]}\n", "f.yaml")
    assert root.data() == {"base": {"x": 1, "y": 2}, "more": {"x": 1, "y": 3}, "list": {"x": 1, "z": 4}}


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(string.printable.replace("\x0b", "").replace("\x0c", "").replace("\r", ""), max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(string.ascii_lowercase, min_size=1, max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.text(string.ascii_lowercase, min_size=1, max_size=5), _values, max_size=4))
@example({"a": "0E0", "b": "1e-3", "c": ["0o7", "0x1f", "yes", "~", "1_000", ""], "d": {"e": "two\nlines"}})
def test_reads_back_what_we_write(value: dict[str, object]):
    assert parse(to_yaml(value), "f.yaml").data() == value


@given(st.text(max_size=80))
def test_any_text_is_a_tree_or_a_config_error(text: str):
    try:
        root = parse(text, "f.yaml")
    except ConfigError as error:
        paths = {problem.path for problem in error.problems}
    else:
        paths = {root.place.path}
    assert paths == {"f.yaml"}


def test_format_value():
    assert format_value({"a": [True, None, "it's", 1.5]}) == "{a: [true, null, 'it''s', 1.5]}"
    assert len(format_value("x" * 200)) == 60
