"""Pydantic's errors as problems of a file: place, key, what was expected, what was given, the nearest valid name."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from moxserve.config.tree import Node, Place, format_value
from moxserve.errors import ConfigProblem, did_you_mean

__all__ = ["expectation", "explain", "is_near", "model_at", "type_name"]

_Context = Mapping[str, Any]

# What was expected, by pydantic's error type. The text ends "…, got VALUE".
_EXPECTED: Mapping[str, str | Callable[[_Context], str]] = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "none_required": "null",
    "greater_than": lambda c: f"a number greater than {c['gt']:g}",
    "greater_than_equal": lambda c: f"a number of at least {c['ge']:g}",
    "less_than": lambda c: f"a number less than {c['lt']:g}",
    "less_than_equal": lambda c: f"a number of at most {c['le']:g}",
    "multiple_of": lambda c: f"a multiple of {c['multiple_of']:g}",
    "string_too_short": lambda c: f"text of at least {c['min_length']} character(s)",
    "string_too_long": lambda c: f"text of at most {c['max_length']} character(s)",
    "string_pattern_mismatch": lambda c: f"text that matches {c['pattern']}",
    "too_short": lambda c: f"at least {c['min_length']} entries",
    "too_long": lambda c: f"at most {c['max_length']} entries",
    "literal_error": lambda c: str(c["expected"]),
    "enum": lambda c: str(c["expected"]),
}


def expectation(error: ErrorDetails) -> str:
    """Say what pydantic expected; its own words when the kind of error is none of ours."""
    found = _EXPECTED.get(error["type"])
    context = error.get("ctx", {})
    if found is None:
        cause = context.get("error")
        return str(cause) if cause is not None else error["msg"]
    return "expected " + (found if isinstance(found, str) else found(context))


def explain(error: ValidationError, model: Any, node: Node, stage: str) -> list[ConfigProblem]:
    """Turn all errors of one stage into problems.

    Args:
        error: what pydantic raised on `node.data()`.
        model: the class that was to be filled, or a type such as a mapping to one.
        node: the stage's mapping.
        stage: its key; empty when the whole file is one.
    """
    found: dict[tuple[Place, str], list[str]] = {}
    errors = error.errors(include_url=False)
    unknown = {details["loc"] for details in errors if details["type"] == "extra_forbidden"}
    for details in errors:
        if details["type"] == "missing" and _is_meant(details["loc"], unknown):
            continue
        place, key, message = _explain_one(details, model, node, stage)
        messages = found.setdefault((place, key), [])
        if message not in messages:
            messages.append(message)
    return [place.problem(_joined(messages), key) for (place, key), messages in found.items()]


def _is_meant(location: tuple[int | str, ...], unknown: Iterable[tuple[int | str, ...]]) -> bool:
    """Tell whether a missing key is there under a misspelt name: then that name is the one mistake to tell."""
    names = [str(other[-1]) for other in unknown if other[:-1] == location[:-1]]
    return any(is_near(name, str(location[-1])) for name in names)


def is_near(name: str, meant: str) -> bool:
    """Tell whether a name is so close to a valid one that it would be suggested."""
    return bool(difflib.get_close_matches(name, [meant], n=1, cutoff=0.6))


def _joined(messages: list[str]) -> str:
    """Join what the branches of a union expected: `expected a number or a list, got 'x'`."""
    if len(messages) == 1:
        return messages[0]
    heads = [m.partition(", got ")[0].removeprefix("expected ") for m in messages]
    tail = messages[0].partition(", got ")[2]
    return f"expected {' or '.join(heads)}, got {tail}"


def _explain_one(details: ErrorDetails, model: Any, node: Node, stage: str) -> tuple[Place, str, str]:
    location = details["loc"]
    target, keys = _walk(node, location)
    key = ".".join([stage, *keys] if stage else keys)
    kind = details["type"]
    if kind == "extra_forbidden":
        name = str(location[-1])
        place = target.key_place or target.place
        fields = _fields(model_at(model, location[:-1]))
        return place, key, f"unknown key {name!r}; {did_you_mean(name, fields, 20)}"
    if kind == "missing":
        name = str(location[-1])
        place = target.key_place or target.place
        found = model_at(model, location[:-1])
        field = found.model_fields.get(name) if found is not None else None
        meaning = f": {field.description}" if field is not None and field.description else ""
        return place, key, f"missing key {name!r}{meaning}"
    if kind.startswith("union_tag_"):
        return _explain_tag(details, target, key)
    message = expectation(details)
    if location:
        message += f", got {format_value(target.data())}"
        if kind == "literal_error" and isinstance(target.value, str):
            near = did_you_mean(target.value, _names(details.get("ctx", {}).get("expected", "")))
            message += f"; {near}" if near.startswith("did you mean") else ""
    return target.place, key, message


def _explain_tag(details: ErrorDetails, target: Node, key: str) -> tuple[Place, str, str]:
    """Explain a mapping whose kind says which keys it has, and is missing or none of those that there are."""
    context = details.get("ctx", {})
    name = str(context.get("discriminator", "")).strip("'").removesuffix("()")
    tag = target.child(name)
    if tag is None:
        got = "" if isinstance(target.value, dict) else f", got {format_value(target.data())}"
        return target.key_place or target.place, key, f"expected a mapping with the key {name!r}{got}"
    near = did_you_mean(str(tag.data()), _names(context.get("expected_tags", "")), 20)
    return tag.place, f"{key}.{name}".lstrip("."), f"no {name} {format_value(tag.data())}; {near}"


def _names(listed: Any) -> list[str]:
    """Take names out of pydantic's list of them: `'a', 'b' or 'c'`."""
    return str(listed).replace("'", "").replace(" or ", ", ").split(", ")


def model_at(annotation: Any, location: Sequence[int | str]) -> type[BaseModel] | None:
    """Follow pydantic's location through a type; None where it does not lead to a model.

    Args:
        annotation: a model, or a type that holds models.
        location: names of fields, keys of mappings, places in lists, and tags or names of union branches.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return model_at(arguments[0], location)
    if origin in (typing.Union, types.UnionType):
        return _branch_at([a for a in arguments if a is not type(None)], location)
    if origin in (dict, list, tuple):
        return model_at(arguments[-1 if origin is dict else 0], location[1:]) if location else None
    if not isinstance(annotation, type) or not issubclass(annotation, BaseModel):
        return None
    if not location:
        return annotation
    field = annotation.model_fields.get(str(location[0]))
    return model_at(field.annotation, location[1:]) if field is not None else None


def _branch_at(branches: Sequence[Any], location: Sequence[int | str]) -> type[BaseModel] | None:
    if len(branches) == 1:
        return model_at(branches[0], location)
    for branch in branches if location else ():
        tags = {mark.tag for mark in getattr(branch, "__metadata__", ()) if isinstance(mark, Tag)}
        if location[0] in tags or location[0] == getattr(branch, "__name__", None):
            return model_at(branch, location[1:])
    return None


def _fields(model: type[BaseModel] | None) -> list[str]:
    return [name for name in model.model_fields if name != "plugin"] if model is not None else []


def _walk(node: Node, location: tuple[int | str, ...]) -> tuple[Node, list[str]]:
    """Follow pydantic's location as far as the file goes; names of union branches are in no file."""
    keys = []
    for part in location:
        child = node.child(part)
        if child is not None:
            node = child
            keys.append(str(part))
    return node, keys


def type_name(annotation: Any) -> str:
    """Write a field's type for people: `int`, `float | null`, `[int, int]`, `'a' | 'b'`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin is typing.Literal:
        return " | ".join(format_value(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_name(inner) for inner in arguments)
    if origin is tuple:
        return "[" + ", ".join(type_name(inner) for inner in arguments) + "]"
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return f"mapping to {type_name(arguments[1])}"
    names: dict[Any, str] = {type(None): "null", str: "text", Any: "any"}
    return names.get(annotation) or str(getattr(annotation, "__name__", annotation))
