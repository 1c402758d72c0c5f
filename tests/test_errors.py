"""The error tree: what the command line, REST and gRPC make of each error."""

from __future__ import annotations

import inspect

import pytest

from moxserve import errors
from moxserve.errors import (
    ConfigError,
    ConfigProblem,
    InterruptedRunError,
    MissingExtraError,
    MoxserveError,
    did_you_mean,
)

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, MoxserveError)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_error_can_be_told_to_everyone(cls: type[MoxserveError]) -> None:
    assert cls.exit_code in {1, 2, 3, 4, 5, 75}
    assert 400 <= cls.http_status < 600
    assert 1 <= cls.grpc_code <= 16
    assert cls.__doc__
    assert cls.__name__ in errors.__all__


@pytest.mark.parametrize(
    ("cls", "exit_code"),
    [
        (errors.UsageError, 2),
        (errors.ConfigError, 2),
        (errors.PartialFailureError, 3),
        (errors.ServerUnreachableError, 4),
        (errors.VerificationError, 5),
        (errors.ExportError, 1),
    ],
)
def test_exit_codes_are_the_documented_ones(cls: type[MoxserveError], exit_code: int) -> None:
    assert cls.exit_code == exit_code


def test_a_hint_has_a_line_of_its_own() -> None:
    assert str(MoxserveError("it broke")) == "it broke"
    assert str(MoxserveError("it broke", hint="mend it")) == "it broke\nhint: mend it"


def test_grpc_statuses_have_one_class_each() -> None:
    statuses = {c.grpc_code: c for c in errors.ServingError.__subclasses__()}
    assert sorted(statuses) == list(range(1, 17))
    assert statuses[5].http_status == 404
    assert statuses[8].http_status == 429


def test_names_near_by_are_named() -> None:
    known = ["learning_rate", "momentum", "decay"]
    assert did_you_mean("learning_rte", known) == "did you mean 'learning_rate'?"
    assert did_you_mean("xyz", known) == "known: decay, learning_rate, momentum"
    assert did_you_mean("xyz", []) == "none are known"
    assert did_you_mean("xyz", [f"name_{i:02}" for i in range(12)]).endswith("name_07 and 4 more")


def test_a_config_problem_points_at_its_place() -> None:
    problem = ConfigProblem("expected a number", "t.yaml", 4, 17, "optimizer.learning_rate", "  learning_rate: fast")
    assert str(problem) == (
        "t.yaml:4:17: optimizer.learning_rate: expected a number\n      learning_rate: fast\n" + " " * 20 + "^"
    )
    error = ConfigError([problem, ConfigProblem("no such plugin", "--set", key="model")])
    assert str(error).endswith("\n--set: model: no such plugin")
    assert len(error.problems) == 2


def test_a_missing_extra_says_what_to_install() -> None:
    error = MissingExtraError("onnxruntime", "onnx", "exporting to ONNX")
    assert str(error) == 'exporting to ONNX needs onnxruntime\nhint: pip install "moxserve[onnx]"'


def test_an_interrupted_run_ends_a_plain_script_with_128_plus_signal() -> None:
    error = InterruptedRunError("stopped", 15)
    assert isinstance(error, SystemExit)
    assert error.code == 143
