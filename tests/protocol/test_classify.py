"""Bodies of classify and regress: what JSON becomes in a tf.Example, and text by text what is refused."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moxserve.errors import InvalidArgument
from moxserve.protocol import messages
from moxserve.protocol.classify import (
    fill_classification,
    fill_regression,
    parse_examples,
    write_classify,
    write_regress,
)
from moxserve.protocol.examples import parse_example


def read(*examples: Any, **others: Any) -> list[dict[str, Any]]:
    body = json.dumps({"examples": list(examples), **others}).encode()
    return [{k: v.tolist() for k, v in parse_example(e).items()} for e in parse_examples(body).examples]


def refused(body: Any) -> str:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(InvalidArgument) as caught:
        parse_examples(raw)
    return caught.value.message


def float32(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def same(found: Any, expected: Any) -> bool:
    return repr(found) == repr(expected)  # NaN equals itself here, and 1 is not 1.0


# What kind a feature is

BYTES = st.one_of(
    st.text(alphabet=st.characters(codec="utf-8"), max_size=8).map(lambda t: (t, t.encode())),
    st.binary(max_size=8).map(lambda b: ({"b64": base64.b64encode(b).decode()}, b)),
)
FLOATS = st.floats().map(lambda f: (f, float32(f)))
INTS = st.one_of(
    st.integers(-(2**63), 2**63 - 1).map(lambda i: (i, i)),
    st.booleans().map(lambda b: (b, int(b))),
)
VALUES = st.one_of(*(st.lists(kind, min_size=1, max_size=6) for kind in (BYTES, FLOATS, INTS)))
FEATURES = st.dictionaries(
    st.text(alphabet=st.characters(codec="utf-8"), max_size=6), st.one_of(VALUES, st.just([])), max_size=4
)


@pytest.mark.slow
@given(st.lists(FEATURES, min_size=1, max_size=4))
def test_the_kind_is_guessed_from_the_json(examples: list[dict[str, Any]]) -> None:
    sent = [{name: [value for value, _ in pairs] for name, pairs in features.items()} for features in examples]
    expected = [{name: [value for _, value in pairs] for name, pairs in features.items()} for features in examples]
    assert same([dict(sorted(e.items())) for e in read(*sent)], [dict(sorted(e.items())) for e in expected])


@given(st.one_of(BYTES, FLOATS, INTS))
def test_a_bare_value_is_a_list_of_one(pair: tuple[Any, Any]) -> None:
    assert same(read({"f": pair[0]}), [{"f": [pair[1]]}])


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("2", "int64_list", 2),
        ("-9223372036854775808", "int64_list", -(2**63)),
        ("2.0", "float_list", 2.0),
        ("2e0", "float_list", 2.0),
        ("NaN", "float_list", math.nan),
        ("-Infinity", "float_list", -math.inf),
        ("1e300", "float_list", math.inf),
        ("18446744073709551616", "float_list", 2.0**64),
        ("-9223372036854775809", "float_list", -(2.0**63)),
        ("true", "int64_list", 1),
        ('"2"', "bytes_list", b"2"),
        ('{"b64": "/w"}', "bytes_list", b"\xff"),
    ],
)
def test_kinds_of_single_values(text: str, kind: str, value: Any) -> None:
    (raw,) = parse_examples(f'{{"examples": [{{"f": {text}}}]}}'.encode()).examples
    feature = messages.Example.FromString(raw).features.feature["f"]
    assert feature.WhichOneof("kind") == kind
    assert same(list(getattr(feature, kind).value), [value])


def test_an_empty_list_has_no_kind() -> None:
    (raw,) = parse_examples(b'{"examples": [{"f": []}]}').examples
    features = messages.Example.FromString(raw).features.feature
    assert list(features) == ["f"]
    assert features["f"].WhichOneof("kind") is None


def test_the_context_is_in_every_example_that_does_not_know_better() -> None:
    assert read({"a": 1}, {"b": "own"}, {}, context={"b": "ctx", "c": 1.5}) == [
        {"a": [1], "b": [b"ctx"], "c": [1.5]},
        {"b": [b"own"], "c": [1.5]},
        {"b": [b"ctx"], "c": [1.5]},
    ]


def test_signature_name_and_unknown_keys() -> None:
    body = parse_examples(b'{"signature_name": "s", "examples": [{}], "other": 1}')
    assert (body.signature_name, body.examples.tolist()) == ("s", [b""])
    assert parse_examples(b'{"examples": [{}]}').signature_name == ""


# What is refused


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ([1, 2.5], "Unexpected element type in feature: f expecting type: int64"),
        ([2.5, 1], "Unexpected element type in feature: f expecting type: float"),
        (["a", 1], "Unexpected element type in feature: f expecting type: bytes"),
        ([True, "a"], "Unexpected element type in feature: f expecting type: int64"),
        ([{"b64": ""}, True], "Unexpected element type in feature: f expecting type: bytes"),
        (None, "Feature: f has element with unexpected JSON type: Null"),
        ([None, None], "Feature: f has element with unexpected JSON type: Null"),
        ([1.5, None], "Feature: f has element with unexpected JSON type: Null"),
        ([[1]], "Feature: f has element with unexpected JSON type: Array"),
        ([1, [1]], "Feature: f has element with unexpected JSON type: Array"),
        ({"a": 1}, "Feature: f has element with unexpected JSON type: Object"),
        ({"b64": 1}, "Feature: f has element with unexpected JSON type: Object"),
        ({"b64": "", "x": 1}, "Feature: f has element with unexpected JSON type: Object"),
        ({"b64": "!"}, "Unable to base64 decode"),
        (2**63, "Feature: f has uint64_t element. Only int64_t is supported."),
        ([1, 2**64 - 1], "Feature: f has uint64_t element. Only int64_t is supported."),
        (10**400, "JSON Parse error: Number too big to be stored in double."),
    ],
)  # fmt: skip
def test_features(feature: Any, message: str) -> None:
    assert refused({"examples": [{"ok": 1, "f": feature}]}) == message
    assert refused({"examples": [{}], "context": {"f": feature}}) == message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b"[]", "JSON Value: [] Is not object"),
        ({"signature_name": 1},
         "JSON Value: {\"signature_name\": 1} not formatted correctly. 'signature_name' key must be a string value."),
        ({}, "JSON Value: {} When method is classify, key 'examples' is expected and was not found"),
        ({"examples": {}}, 'JSON Value: {"examples": {}} Expecting \'examples\' value to be an list/array'),
        ({"examples": []}, "JSON Value: {\"examples\": []} 'examples' value is an empty array"),
        ({"examples": [{}, 3]}, "Example must be JSON object but got JSON Number"),
        ({"examples": [[]]}, "Example must be JSON object but got JSON Array"),
        ({"examples": [{}], "context": None}, "Example must be JSON object but got JSON Null"),
        ({"examples": [{}], "context": True}, "Example must be JSON object but got JSON True"),
        (b'{"examples": [{"\xff": 1}]}', "JSON Parse error: the feature name '\\udcff' is not UTF-8"),
    ],
)  # fmt: skip
def test_bodies(body: Any, message: str) -> None:
    assert refused(body) == message


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["examples", "context", "signature_name"]), JSON))
def test_any_json_is_read_or_refused(document: dict[str, Any]) -> None:
    try:
        body = parse_examples(json.dumps(document).encode())
    except InvalidArgument:
        return
    assert len(body.examples) == len(document["examples"])


# Results


def texts(*rows: list[bytes]) -> np.ndarray:
    return np.array(rows, dtype=object)


def test_classify_answers_byte_by_byte() -> None:
    scores = np.float32([[0.1, 2], [math.nan, 1 / 3]])
    assert write_classify(texts([b"cat", b'd"g'], [b"\xff", b""]), scores) == (
        b'{\n    "results": [[["cat", 0.1], ["d\\"g", 2.0]], [[{"b64": "/w=="}, NaN], ["", 0.333333343]]\n    ]\n}'
    )
    assert write_classify(None, scores[:1]) == b'{\n    "results": [[["", 0.1], ["", 2.0]]\n    ]\n}'
    assert write_classify(texts([b"a"]), None) == b'{\n    "results": [[["a", 0.0]]\n    ]\n}'
    assert write_classify(None, np.zeros((2, 0), np.float32)) == b'{\n    "results": [[], []\n    ]\n}'


def test_regress_answers_byte_by_byte() -> None:
    assert write_regress(np.float32([2.5, 3, 1e30])) == b'{\n    "results": [2.5, 3.0, 1e+30]\n}'


def test_nothing_to_write() -> None:
    with pytest.raises(InvalidArgument, match="Cannot convert empty ClassificationResults to JSON"):
        write_classify(None, np.zeros((0, 3), np.float32))
    with pytest.raises(InvalidArgument, match="Cannot convert empty RegressionResults to JSON"):
        write_regress(np.zeros(0, np.float32))


def test_messages_of_results() -> None:
    result = messages.ClassificationResult()
    fill_classification(result, texts([b"a", b"b"], [b"c", b"\xff"]), np.float32([[1, 2], [3, 4]]))
    found = [[(c.label, c.score) for c in row.classes] for row in result.classifications]
    assert found == [[("a", 1.0), ("b", 2.0)], [("c", 3.0), ("\ufffd", 4.0)]]
    regression = messages.RegressionResult()
    fill_regression(regression, np.float32([1, 2]))
    assert [r.value for r in regression.regressions] == [1.0, 2.0]


@given(st.integers(0, 4), st.integers(0, 4), st.sampled_from(["both", "classes", "scores"]), st.data())
@settings(deadline=None)
def test_messages_of_any_results(batch, width, given_, data) -> None:
    scores = data.draw(hnp.arrays(np.float32, (batch, width)))
    labels = st.one_of(st.sampled_from([b"", b"a", b"\xff"]), st.text(max_size=200).map(str.encode))
    classes = np.empty((batch, width), object)
    classes.reshape(-1)[:] = data.draw(st.lists(labels, min_size=classes.size, max_size=classes.size))
    result, expected = messages.ClassificationResult(), messages.ClassificationResult()
    fill_classification(result, classes if given_ != "scores" else None, scores if given_ != "classes" else None)
    for label_row, score_row in zip(classes, scores, strict=True):
        row = expected.classifications.add()
        for label, score in zip(label_row, score_row, strict=True):
            cell = row.classes.add()
            if given_ != "scores":
                cell.label = label.decode("utf-8", "replace")
            if given_ != "classes":
                cell.score = score
    assert result.SerializeToString() == expected.SerializeToString()


@given(hnp.arrays(np.float32, st.integers(0, 20)))
@settings(deadline=None)
def test_messages_of_any_regression(values) -> None:
    found, expected = messages.RegressionResult(), messages.RegressionResult()
    fill_regression(found, values)
    for value in values:
        expected.regressions.add().value = value
    assert found.SerializeToString() == expected.SerializeToString()
