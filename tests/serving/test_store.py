"""Models that are served out of a bucket."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moxserve import file
from moxserve.client import Client
from moxserve.export.publish import open_publication
from moxserve.serving.main import Server
from moxserve.serving.source import find_versions


def publish(base: str, folder: Path) -> str:
    """Publish what is in a folder as the next version."""
    with open_publication(base) as staged:
        file.copy_parallel(folder, staged.staging)
    return staged.path


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory, save_linear: Callable[..., Path]) -> Path:
    """y = x, with a variable."""
    return save_linear(tmp_path_factory.mktemp("linear") / "1")


@pytest.mark.slow
def test_what_counts_as_a_version_in_a_bucket(store: Any, linear: Path) -> None:
    base = store.base
    with pytest.raises(FileNotFoundError):
        find_versions(base)
    publish(base, linear)
    file.copy_parallel(linear, f"{base}/3")
    file.copy_parallel(linear, f"{base}/v4")
    file.copy_parallel(linear, f"{base}/00003")
    file.write(f"{base}/5/variables/variables.index", "begun")
    file.write(f"{base}/7", "no directory")
    listing = find_versions(base)
    assert sorted(listing.versions) == [1, 3]
    assert listing.versions[1].path == f"{base}/1"
    assert (listing.doubled, listing.others) == (("00003",), ("7", "v4"))
    assert list(listing.incomplete) == [5]
    before = listing.versions[3].fingerprint
    assert find_versions(base).versions[3].fingerprint == before
    file.append(f"{base}/3/extra", "written again")
    assert find_versions(base).versions[3].fingerprint != before


def test_a_look_is_one_request(store: Any, linear: Path) -> None:
    for _ in range(3):
        publish(store.base, linear)
    find_versions(store.base)
    store.calls.clear()
    assert len(find_versions(store.base).versions) == 3
    assert len(store.calls) == 1


@pytest.mark.slow
def test_a_server_takes_the_version_that_is_published_next(
    store: Any,
    scratch: Path,
    linear: Path,
    serve: Callable[..., Server],
    wait_for: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("moxserve.serving.tracking._REMOTE_LOOK_S", 0.2)
    publish(store.base, linear)
    server = serve(store.base)
    with Client(f"grpc://127.0.0.1:{server.grpc_port}") as client:
        first = client.predict("default", {"x": [1.0, 2.0]})
        copies = [path for path in scratch.glob("*/1/saved_model.pb")]
        assert len(copies) == 1
        publish(store.base, linear)
        wait_for(lambda: [v.version for v in client.status("default") if v.state == "AVAILABLE"] == [2], "version 2")
        assert client.predict("default", {"x": [1.0, 2.0]})["y"].tolist() == first["y"].tolist()
        wait_for(lambda: not copies[0].exists(), "the copy of version 1 is removed")
    assert server.stop(120)
    assert os.listdir(scratch) == []
