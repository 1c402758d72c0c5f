"""The mini-language: what it reads, what it refuses and where, and that it reads back what it writes."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxserve.errors import UsageError
from moxserve.export.transforms import DEFAULT_TRANSFORMS, TRANSFORMS, Transform, format_transforms, parse_transforms


def test_reads_the_list_of_the_guide() -> None:
    found = parse_transforms(
        [
            "remove_nodes(op=Identity)",
            "fold_constants(ignore_error=true)",
            "merge_duplicate_nodes",
            "strip_unused_nodes",
            "fold_batch_norms",
        ]
    )
    assert [t.name for t in found] == [
        "remove_nodes", "fold_constants", "merge_duplicate_nodes", "strip_unused_nodes", "fold_batch_norms",
    ]  # fmt: skip
    assert found[0].all("op") == ["Identity"]
    assert [t.ignore_errors for t in found] == [False, True, False, False, False]


def test_reads_the_shell_command_of_the_documentation() -> None:
    found = parse_transforms(
        '\\\n strip_unused_nodes(type=float, shape="1,299,299,3") \\\n'
        "remove_nodes(op=Identity, op=CheckNumerics) \\\n fold_constants(ignore_errors=true)\\\n"
        " fold_old_batch_norms\\\n"
    )
    assert [t.name for t in found] == ["strip_unused_nodes", "remove_nodes", "fold_constants", "fold_old_batch_norms"]
    assert found[0].get("shape") == "1,299,299,3"
    assert found[1].all("op") == ["Identity", "CheckNumerics"]


@pytest.mark.parametrize(
    "text",
    [
        "sort_by_execution_order,remove_device",
        "sort_by_execution_order remove_device",
        "sort_by_execution_order\n\tremove_device\n",
        "  sort_by_execution_order ( ) , , remove_device()",
    ],
)
def test_separators(text: str) -> None:
    assert [t.name for t in parse_transforms(text)] == ["sort_by_execution_order", "remove_device"]


def test_values() -> None:
    (one,) = parse_transforms('quantize_nodes(fallback_min=-6.5, fallback_max = "6e0",)')
    assert [one.get("fallback_min"), one.get("fallback_max")] == ["-6.5", "6e0"]
    (two,) = parse_transforms(r"""insert_logging(message="a \"b\", c\\", prefix='conv 1/', op=Relu, op=Conv2D)""")
    assert two.get("message") == 'a "b", c\\'
    assert two.all("prefix") == ["conv 1/"]
    assert two.all("op") == ["Relu", "Conv2D"]
    assert parse_transforms("round_weights")[0].get("num_steps") == "256"


def test_old_spelling_of_a_name() -> None:
    assert parse_transforms("obsfucate_names")[0].name == "obfuscate_names"


def test_nothing() -> None:
    assert parse_transforms("") == parse_transforms(" \n, ") == parse_transforms([]) == ()


@pytest.mark.parametrize(
    ("text", "column", "expected"),
    [
        ("fold_constant", 1, "did you mean 'fold_constants'"),
        ("sort_by_execution_order nope", 25, "unknown transform 'nope'"),
        ("remove_nodes(ops=Identity)", 14, "did you mean 'op'"),
        ("remove_nodes(op=Identity", 13, "not closed"),
        ("remove_nodes(op)", 16, "expected = and a value"),
        ("remove_nodes(op=)", 17, "expected a value for op"),
        ("remove_nodes(=a)", 14, "expected an argument of remove_nodes"),
        ('insert_logging(message="abc)', 24, "no closing"),
        ("remove_nodes(op=Identity))", 26, "expected the name of a transform, found ')'"),
        ("remove_nodes", 1, "needs op="),
        ("round_weights(num_steps=1)", 15, "expected a whole number of 2 or more"),
        ("round_weights(num_steps=2.5)", 15, "expected a whole number"),
        ("round_weights(num_steps=4, num_steps=5)", 28, "given twice"),
        ("quantize_nodes(input_min=nan, input_max=1)", 16, "expected a number"),
        ("quantize_nodes(input_min=1)", 1, "needs input_min and input_max together"),
        ("fold_constants(ignore_errors=maybe)", 16, "expected true or false"),
        ("fold_constants(clear_output_shapes=2)", 16, "expected true or false"),
        ('strip_unused_nodes(shape="1,x")', 20, "expected sizes"),
        ("strip_unused_nodes(name=a)", 1, "needs type_for_name or shape_for_name"),
        ("strip_unused_nodes(name=a, name=b, type_for_name=float)", 1, "one type_for_name for each name"),
        ("fake_quantize_training", 1, "is gone: it rewrote training graphs"),
        ("freeze_requantization_ranges(min_max_log_file=a, min_percentile=101)", 50, "from 0 to 100"),
    ],
)
def test_refuses(text: str, column: int, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_transforms(text)
    assert f"column {column}: " in str(caught.value)
    assert expected in str(caught.value)


def test_names_line_and_item() -> None:
    with pytest.raises(UsageError, match=r"line 2, column 3: unknown transform 'nope'"):
        parse_transforms("remove_device\n  nope")
    with pytest.raises(UsageError, match=r"item 2, column 1: unknown transform 'nope'"):
        parse_transforms(["remove_device", "nope"])
    with pytest.raises(UsageError, match="item 1 is 3"):
        parse_transforms([3])  # type: ignore[list-item]


def test_default_transforms_are_read() -> None:
    assert format_transforms(parse_transforms(DEFAULT_TRANSFORMS)) == DEFAULT_TRANSFORMS


def _values(kind: str, low: float | None, high: float | None) -> st.SearchStrategy[str]:
    if kind == "int":
        return st.integers(int(low or -1), int(high or 10**6)).map(str)
    if kind == "float":
        wide = high is not None
        return st.floats(low if wide else -1e6, high if wide else 1e6, allow_nan=False).map(repr)
    if kind == "bool":
        return st.sampled_from(["true", "false", "True", "0", "1"])
    if kind == "dtype":
        return st.sampled_from(["float", "int32", "quint8"])
    if kind == "shape":
        return st.lists(st.sampled_from(["-1", "1", "224", "?"]), max_size=4).map(",".join)
    return st.text(string.printable, min_size=1, max_size=12)


@st.composite
def transforms(draw: st.DrawFn) -> Transform:
    name = draw(st.sampled_from(sorted(TRANSFORMS)))
    info, arguments = TRANSFORMS[name], []
    grouped = {key for group in info.together for key in group if draw(st.booleans())}
    for argument in info.arguments:
        if argument.name.endswith("_for_name") or argument.name == "name":
            continue
        wanted = any({argument.name, *grouped} >= set(g) for g in info.together if argument.name in g)
        if argument.name in grouped and not wanted:
            continue
        many = 1 if argument.required or wanted else 0
        most = 3 if argument.repeatable else 1
        if any(argument.name in group for group in info.together):
            most = many
        values = _values(argument.kind, argument.minimum, argument.maximum)
        arguments += [(argument.name, v) for v in draw(st.lists(values, min_size=many, max_size=max(many, most)))]
    kept = [a for a in arguments if all({k for k, _ in arguments} >= set(g) for g in info.together if a[0] in g)]
    return Transform(name, tuple(draw(st.permutations(kept))), draw(st.booleans()))


@pytest.mark.slow
@given(st.lists(transforms(), max_size=4))
def test_reads_back_what_it_writes(wanted: list[Transform]) -> None:
    assert parse_transforms(format_transforms(wanted)) == tuple(wanted)
    assert parse_transforms([str(t) for t in wanted]) == tuple(wanted)


@given(st.text(st.sampled_from("remove_nodes(op=Identity), \n\"'\\=-"), max_size=60) | st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_transforms(text)
    except UsageError:
        with pytest.raises(UsageError, match="column"):
            parse_transforms(text)
    else:
        assert parse_transforms(format_transforms(found)) == found
