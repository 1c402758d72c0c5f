"""Models on disk: which directory is meant, and what is told when there is none."""

from __future__ import annotations

import shutil

import pytest

from moxserve.client import Client, LocalTransport
from moxserve.errors import InvalidArgument, RequestError
from moxserve.types import Signature, TensorSpec, dtype_by_name

SPEC = TensorSpec("x", dtype_by_name("float32"), (None,))


class Backend:
    """A backend that answers with the number of its directory."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.closed = False
        self.signatures = {"serving_default": Signature("serving_default", "", {"x": SPEC}, {"y": SPEC})}

    def run(self, signature, inputs, outputs):
        if (inputs["x"] < 0).any():
            raise InvalidArgument("negative")
        return {"y": inputs["x"] * 0 + int(self.path.rpartition("/")[2])}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def base(tmp_path):
    for version in ("1", "00000007", "notes"):
        (tmp_path / "m" / version).mkdir(parents=True)
        (tmp_path / "m" / version / "saved_model.pb").touch()
    return tmp_path


@pytest.mark.parametrize(("below", "model"), [("m", "anything"), ("", "m")])
def test_base_of_versions_and_folder_of_models(base, below, model) -> None:
    with Client(LocalTransport(base / below, load=Backend)) as client:
        assert client.predict(model, [1.0])["y"].tolist() == [7]
        assert client.predict(f"{model}:1", [1.0])["y"].tolist() == [1]
        assert [s.version for s in client.status(model)] == [7, 1]
        assert client.metadata(model).version == 7
        with pytest.raises(RequestError, match="has no version 3; it has 1, 7"):
            client.metadata(f"{model}:3")
        with pytest.raises(RequestError, match="has no labels"):
            client.metadata(f"{model}@stable")


def test_a_single_version(base) -> None:
    with Client(LocalTransport(base / "m" / "00000007", load=Backend)) as client:
        assert client.metadata("m").version == 7


def test_the_newest_version_stays_for_the_life_of_the_client(base) -> None:
    with Client(LocalTransport(base / "m", load=Backend)) as client:
        assert client.predict("m", [1.0])["y"].tolist() == [7]
        shutil.copytree(base / "m" / "1", base / "m" / "8")
        assert client.predict("m", [1.0])["y"].tolist() == [7]
    with Client(LocalTransport(base / "m", load=Backend)) as client:
        assert client.predict("m", [1.0])["y"].tolist() == [8]


def test_refusals_and_closing(base) -> None:
    made = []

    def load(path: str) -> Backend:
        made.append(Backend(path))
        return made[-1]

    with Client(LocalTransport(base / "m", load=load)) as client:
        with pytest.raises(RequestError, match="answered INVALID_ARGUMENT: negative"):
            client.predict("m", [-1.0])
        client.predict("m", [1.0])
    assert [b.closed for b in made] == [True]


def test_nothing_to_run(tmp_path) -> None:
    with Client(LocalTransport(tmp_path, load=Backend)) as client, pytest.raises(RequestError) as caught:
        client.metadata("m")
    assert "expected saved_model.pb, model.onnx, model.xml or model.tflite, or folders" in caught.value.message
    assert caught.value.status == "NOT_FOUND"
