"""The JSON schema: right for the shipped pipelines, wrong where loading says so too, and kept current."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moxserve.config.schema import pipeline_schema
from moxserve.registry import discover


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return pipeline_schema(discover([]))


def test_each_plugin_is_a_branch_with_its_own_parameters(schema: dict[str, Any]):
    branches = schema["properties"]["optimizer"]["anyOf"][0]["oneOf"]
    assert [b["title"] for b in branches] == [
        "adadelta", "adagrad", "adam", "ftrl", "momentum", "per_loss", "rmsprop", "sgd",
        "module:Class or ./file.py:Class",
    ]  # fmt: skip
    adam = branches[2]
    assert adam["properties"]["plugin"]["const"] == "adam"
    assert adam["required"] == ["plugin", "learning_rate"]
    rate = adam["properties"]["learning_rate"]
    assert rate["description"] == "Step size: a number, or a schedule."
    assert rate["oneOf"][0] == {"exclusiveMinimum": 0, "type": "number"}
    assert adam["additionalProperties"] is False
    assert all(p.get("description") for b in branches[:-1] for p in b["properties"].values())


def test_every_reference_is_defined(schema: dict[str, Any]):
    text = json.dumps(schema)
    for part in text.split('"$ref": "')[1:]:
        assert part.partition('"')[0].removeprefix("#/$defs/") in schema["$defs"]


def test_the_file_beside_the_examples_is_current(schema: dict[str, Any], repo_root: Path):
    shipped = json.loads((repo_root / "pipelines" / "pipeline.schema.json").read_text())
    assert shipped == schema, "run: moxserve pipeline schema --output pipelines/pipeline.schema.json"
