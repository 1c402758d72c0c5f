"""ModelServerConfig: text, checks and labels. The texts of errors are compared as they are."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxserve.errors import ConfigError, FailedPrecondition, InvalidArgument, UsageError
from moxserve.protocol import messages
from moxserve.serving.model_config import ModelConfig, check_labels, model_configs, read_config_file
from moxserve.serving.policy import VersionPolicy


def config(text: str) -> Any:
    return messages.parse_text(text, messages.ModelServerConfig())


def one(text: str) -> ModelConfig:
    (model,) = model_configs(config(f"model_config_list {{ config {{ {text} }} }}"))
    return model


GOOD = 'name: "m" base_path: "/m" model_platform: "tensorflow"'


def test_a_file(tmp_path: Path, testdata: Path) -> None:
    path = tmp_path / "models.txt"
    text = (testdata / "good_model_config.txt").read_text()
    for name in ("HALF_PLUS_TWO", "HALF_PLUS_THREE"):
        text = text.replace(f"${{TEST_{name}_DIR}}", f"/models/{name.lower()}")
    path.write_text(text)
    assert model_configs(read_config_file(str(path))) == [
        ModelConfig("half_plus_two", "/models/half_plus_two"),
        ModelConfig("half_plus_three", "/models/half_plus_three"),
    ]


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", VersionPolicy()),
        ("model_version_policy {}", VersionPolicy()),
        ("model_version_policy { latest {} }", VersionPolicy()),
        ("model_version_policy { latest { num_versions: 3 } }", VersionPolicy(num_versions=3)),
        ("model_version_policy: { all: {} }", VersionPolicy("all")),
        (
            "model_version_policy { specific { versions: 7, versions: [8, 9] } }",
            VersionPolicy("specific", 1, (7, 8, 9)),
        ),
        ("model_version_policy { specific {} }", VersionPolicy("specific")),
    ],
)
def test_policies(text, policy) -> None:
    assert one(f"{GOOD} {text}").policy == policy


def test_labels_and_the_old_way_to_name_the_platform() -> None:
    model = one(
        'name: "m" base_path: "/m" model_type: TENSORFLOW '
        'version_labels { key: "a" value: 1 } version_labels { key: "b" value: 2 }'
    )
    assert model.labels == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"config {{ {GOOD} }} config {{ {GOOD} }}", "Illegal to list model m multiple times in config list"),
        ('config { base_path: "/m" model_platform: "tensorflow" }', "model 1 of 1 has no name"),
        ('config { name: "m" base_path: "a/b" model_platform: "tensorflow" }',
         "Expected model m to have an absolute path or URI; got base_path()=a/b"),
        ('config { name: "m" model_platform: "tensorflow" }',
         "Expected model m to have an absolute path or URI; got base_path()="),
        ('config { name: "m" base_path: "/m" }',
         "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform, "
         "model name is m"),
        (f"config {{ {GOOD} model_type: TENSORFLOW }}",
         "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform, "
         "model name is m"),
        ('config { name: "m" base_path: "/m" model_type: OTHER }',
         "ModelServerConfig::model_type choice 2 not supported."),
        ('config { name: "m" base_path: "/m" model_platform: "caffe" }', "Model m requests unsupported platform caffe"),
    ],
)  # fmt: skip
def test_lists_that_are_refused(text, message) -> None:
    with pytest.raises(InvalidArgument, match=f"^{re.escape(message)}"):
        model_configs(config(f"model_config_list {{ {text} }}"))


def test_a_platform_must_stay() -> None:
    other = config('model_config_list { config { name: "m" base_path: "/m" model_platform: "onnx" } }')
    with pytest.raises(InvalidArgument) as caught:
        model_configs(other, served=[ModelConfig("m", "/m")])
    assert caught.value.message == (
        "Illegal to change a model's platform. For model m platform was tensorflow and new platform requested is onnx"
    )


def test_what_is_no_list_or_has_no_engine() -> None:
    with pytest.raises(InvalidArgument, match="custom_model_config is not supported"):
        model_configs(config("custom_model_config {}"))
    with pytest.raises(UsageError, match="no file engine for nfs://"):
        one('name: "m" base_path: "nfs://h/m" model_platform: "tensorflow"')


@pytest.mark.parametrize(
    ("text", "where", "reason"),
    [
        ("improperly formatted file.\n", "1:1", 'has no field named "improperly".'),
        ('model_config_list {\n\tconfig { nam: "x" }\n}', "2:11", 'has no field named "nam".'),
        ('model_config_list {\n  config { name: "x" }\n', "", 'Expected "}".'),
        ('model_config_list { config { name: "x\n', "1:36", ""),
    ],
)
def test_files_that_are_no_configuration(tmp_path, text, where, reason) -> None:
    path = tmp_path / "models.txt"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config_file(str(path))
    message = caught.value.message
    assert f"Invalid protobuf file: '{path}'" in message
    assert f"Error parsing text-format tensorflow.serving.ModelServerConfig: {where}" in message
    assert message.startswith(f"{path}:{where}")
    assert reason in message


def test_files_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(UsageError, match="cannot read the model configuration"):
        read_config_file(str(tmp_path / "nothing"))
    (tmp_path / "empty").touch()
    with pytest.raises(ConfigError, match=r"it is empty; expected a tensorflow\.serving\.ModelServerConfig"):
        read_config_file(str(tmp_path / "empty"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError):
        read_config_file(str(tmp_path / "binary"))


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_with_a_reason(tmp_path_factory, text) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_text(text, encoding="utf-8", errors="replace", newline="")
    try:
        message = read_config_file(str(path))
    except UsageError as error:
        message = None
        told = error.message
    assert str(path) in told if message is None else message.DESCRIPTOR.name == "ModelServerConfig"


def model(**labels: int) -> list[ModelConfig]:
    return [ModelConfig("m", "/m", labels=labels)]


def loaded(*versions: int) -> Any:
    def available(name: str) -> Collection[int]:
        return versions if name == "m" else ()

    return available


REFUSED = "Request to assign label to version 2 of model m, which is not currently available for inference"


@pytest.mark.parametrize(
    ("wanted", "served", "versions", "strict", "lenient"),
    [
        (model(a=2), model(), (2,), True, True),
        (model(a=2), model(), (1,), False, True),  # new
        (model(a=2), [], (), False, True),
        (model(a=2), model(a=2), (1,), False, True),  # stays
        (model(a=2), model(a=1), (1,), False, False),  # moves
        (model(a=2), model(a=1), (1, 2), True, True),
        (model(b=2), model(a=1), (1,), False, True),
        (model(), model(a=1), (), True, True),
    ],
)
def test_where_labels_may_lead(wanted, served, versions, strict, lenient) -> None:
    for allow, fine in ((False, strict), (True, lenient)):
        if fine:
            check_labels(wanted, served, loaded(*versions), allow_unavailable=allow)
            continue
        with pytest.raises(FailedPrecondition) as caught:
            check_labels(wanted, served, loaded(*versions), allow_unavailable=allow)
        assert caught.value.message == REFUSED
