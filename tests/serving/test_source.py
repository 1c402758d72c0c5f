"""Which directories are versions, and which are not yet."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxserve.export.publish import open_publication
from moxserve.serving.source import find_versions


@pytest.fixture(scope="module")
def linear(tmp_path_factory, save_linear) -> Path:
    return save_linear(tmp_path_factory.mktemp("linear") / "1")


def test_names(tmp_path: Path, linear: Path) -> None:
    for name in ("1", "0002", "-3", "v4", "5.0", "6_tmp", ".7", "8 "):
        shutil.copytree(linear, tmp_path / name)
    (tmp_path / "9").write_text("a plain file is no version")
    listing = find_versions(str(tmp_path))
    assert sorted(listing.versions) == [-3, 1, 2]
    assert listing.versions[2].path == str(tmp_path / "0002")
    assert set(listing.others) == {"v4", "5.0", "6_tmp", ".7", "8 ", "9"}
    assert not listing.incomplete


def test_two_names_for_one_number(tmp_path: Path, linear: Path) -> None:
    shutil.copytree(linear, tmp_path / "1")
    shutil.copytree(linear, tmp_path / "00001")
    listing = find_versions(str(tmp_path))
    assert listing.versions[1].path == str(tmp_path / "1")
    assert listing.doubled == ("00001",)


def test_a_base_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find_versions(str(tmp_path / "nowhere"))


def test_real_models_are_complete(testdata: Path) -> None:
    for model in (
        "saved_model_half_plus_two_cpu", "saved_model_half_plus_two_tf2_cpu", "saved_model_counter",
        "matrix_half_plus_two", "bad_half_plus_two",
    ):  # fmt: skip
        listing = find_versions(str(testdata / model))
        assert listing.versions, model
        assert not listing.incomplete


FILES = ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001")


@given(st.sets(st.sampled_from(FILES)))
def test_a_half_copied_model_is_no_version(tmp_path_factory, linear, present) -> None:
    base = tmp_path_factory.mktemp("half")
    for name in present:
        (base / "1" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(linear / name, base / "1" / name)
    (base / "1").mkdir(exist_ok=True)
    listing = find_versions(str(base))
    complete = len(present) == len(FILES)
    assert list(listing.versions) == ([1] if complete else [])
    assert list(listing.incomplete) == ([] if complete else [1])


def test_a_missing_shard(tmp_path: Path, linear: Path) -> None:
    shutil.copytree(linear, tmp_path / "1")
    data = tmp_path / "1" / "variables"
    os.rename(data / "variables.data-00000-of-00001", data / "variables.data-00000-of-00002")
    assert "1 of 2" in find_versions(str(tmp_path)).incomplete[1]


@pytest.fixture
def sealed(tmp_path: Path, linear: Path) -> Path:
    """A version with a manifest, as our exporter writes it."""
    from moxserve.export.manifest import Manifest, Source, write_manifest

    with open_publication(str(tmp_path)) as staged:
        shutil.copytree(linear, staged.staging, dirs_exist_ok=True)
        assert not find_versions(str(tmp_path)).versions
        write_manifest(
            staged.staging, Manifest(model_name="m", signatures={}, source=Source(checkpoint="x"), variants=())
        )
    return Path(staged.path)


def test_a_manifest_vouches_for_its_files(sealed: Path) -> None:
    base = str(sealed.parent)
    assert find_versions(base).versions[1].sealed
    data = sealed / FILES[2]
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    assert f"{FILES[2]} has {len(whole) - 1} bytes" in find_versions(base).incomplete[1]
    data.unlink()
    assert f"{FILES[2]} is missing" in find_versions(base).incomplete[1]
    data.write_bytes(whole)
    assert find_versions(base).versions[1].sealed
    (sealed / "assets.extra" / "moxserve.json").write_text("{")
    assert "expected a moxserve manifest" in find_versions(base).incomplete[1]


def test_the_fingerprint_tells_that_a_file_was_written_again(tmp_path: Path, linear: Path) -> None:
    shutil.copytree(linear, tmp_path / "1")
    first = find_versions(str(tmp_path)).versions[1]
    assert find_versions(str(tmp_path)).versions[1] == first
    os.utime(tmp_path / "1" / "saved_model.pb", (1, 1))
    assert find_versions(str(tmp_path)).versions[1].fingerprint != first.fingerprint


def other_formats(tmp_path: Path, *names: str) -> Any:
    for name in names:
        path = tmp_path / "1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return find_versions(str(tmp_path))


@pytest.mark.parametrize(
    "names",
    [
        ["model.onnx"],
        ["model.onnx", "model.onnx.data"],
        ["model.tflite"],
        ["model.xml", "model.bin"],
        ["variants/a/model.onnx"],
        ["variants/a/model.xml", "variants/a/model.bin", "notes.txt"],
        ["variants/a/model.xml", "variants/b/model.tflite"],
    ],
)
def test_models_in_other_formats(tmp_path: Path, names: list[str]) -> None:
    listing = other_formats(tmp_path, *names)
    assert (list(listing.versions), listing.incomplete) == ([1], {})


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["model.xml"], "model.bin is missing"),
        (["variants/a/model.xml"], "variants/a/model.bin is missing"),
        (["model.bin"], "no saved_model.pb, and no model.onnx, model.xml or model.tflite"),
        (["other.onnx"], "no saved_model.pb"),
        (["deep/er/model.onnx"], "no saved_model.pb"),
        (["variants/model.onnx"], "no saved_model.pb"),
    ],
)
def test_models_in_other_formats_that_are_not_complete(tmp_path: Path, names: list[str], why: str) -> None:
    listing = other_formats(tmp_path, *names)
    assert not listing.versions
    assert listing.incomplete[1].startswith(why)


def test_a_manifest_vouches_for_a_model_in_another_format(tmp_path: Path) -> None:
    from moxserve.export.manifest import Manifest, Source, write_manifest

    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").write_bytes(b"whole")
    write_manifest(
        str(tmp_path / "1"), Manifest(model_name="m", signatures={}, source=Source(checkpoint="x"), variants=())
    )
    assert find_versions(str(tmp_path)).versions[1].sealed
    (tmp_path / "1" / "model.onnx").write_bytes(b"who")
    assert "model.onnx has 3 bytes; the manifest says 5" in find_versions(str(tmp_path)).incomplete[1]
