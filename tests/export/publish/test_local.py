"""How version directories are numbered, published and refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moxserve.errors import UsageError, VersionExistsError
from moxserve.export.publish import check_version, list_versions, next_version, open_publication
from moxserve.export.versions import normalize_version
from moxserve.file.atomic import TEMP_PREFIX


def test_a_version_is_a_directory_whose_whole_name_is_an_int64(tmp_path: Path) -> None:
    for name in ("1", "007", "12", "model", "1_tmp", "v3", "1.0", str(2**63), f"{TEMP_PREFIX}1-x"):
        (tmp_path / name).mkdir()
    (tmp_path / "99").write_text("a file")
    assert list_versions(str(tmp_path)) == [1, 7, 12]


def test_a_base_that_does_not_exist_has_no_versions(tmp_path: Path) -> None:
    assert list_versions(str(tmp_path / "no")) == []
    assert next_version(str(tmp_path / "no")) == 1


def test_the_next_version_is_the_highest_plus_one(tmp_path: Path) -> None:
    for name in ("3", "00009", "-4"):
        (tmp_path / name).mkdir()
    assert next_version(str(tmp_path)) == 10


def test_no_number_is_left_above_the_largest(tmp_path: Path) -> None:
    (tmp_path / str(2**63 - 1)).mkdir()
    with pytest.raises(UsageError, match="no version number is left above 9223372036854775807"):
        next_version(str(tmp_path))


@pytest.mark.parametrize(
    ("given", "expected"),
    [(-1, -1), ("-1", -1), (0, 0), (7, 7), ("007", 7), (np.int64(5), 5), ("model", "model"), ("v1.2", "v1.2")],
)
def test_versions_come_in_one_form(given: object, expected: object) -> None:
    assert normalize_version(given) == expected


@pytest.mark.parametrize("given", [-2, "-7", True, 1.5, None, "", ".hidden", "..", "a/b", "a\0b", 2**63])
def test_what_is_no_version_is_refused(given: object) -> None:
    with pytest.raises(UsageError, match=r"expected -1 \(next free number\), a whole number or a plain folder name"):
        normalize_version(given)


def test_publishing_takes_the_next_number_and_leaves_nothing_else(tmp_path: Path) -> None:
    base = tmp_path / "models" / "half"
    for expected in (1, 2):
        with open_publication(str(base)) as staged:
            Path(staged.staging, "saved_model.pb").write_bytes(b"x")
            assert list_versions(str(base)) == list(range(1, expected))
        assert (staged.version, staged.path) == (expected, str(base / str(expected)))
    assert sorted(os.listdir(base)) == ["1", "2"]
    assert (base / "2" / "saved_model.pb").read_bytes() == b"x"


def test_a_failure_publishes_nothing_and_leaves_no_litter(tmp_path: Path) -> None:
    def fail() -> None:
        with open_publication(str(tmp_path)) as staged:
            Path(staged.staging, "half").write_text("written")
            raise RuntimeError("model broke")

    with pytest.raises(RuntimeError):
        fail()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("taken", ["1", "001"])
def test_a_number_that_is_there_is_refused_in_moxings_words(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).mkdir()
    expected = "Export directory already exists. Please specify a different export directory: "
    with pytest.raises(VersionExistsError) as raised, open_publication(str(tmp_path), 1):
        pytest.fail("the block must not run")
    assert raised.value.message == expected + str(tmp_path / "1")
    assert "-1" in str(raised.value.hint)


def test_a_name_that_is_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file of that name")
    with pytest.raises(VersionExistsError, match="already exists"):
        check_version(str(tmp_path), "model")


def test_a_version_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    def publish() -> None:
        with open_publication(str(tmp_path), 5) as staged:
            Path(staged.staging, "mine").write_text("mine")
            (tmp_path / "5").mkdir()
            (tmp_path / "5" / "theirs").write_text("theirs")

    with pytest.raises(VersionExistsError, match="already exists"):
        publish()
    assert os.listdir(tmp_path) == ["5"]
    assert os.listdir(tmp_path / "5") == ["theirs"]


def test_the_next_number_is_taken_when_another_exporter_was_faster(tmp_path: Path) -> None:
    with open_publication(str(tmp_path)) as slow:
        Path(slow.staging, "slow").touch()
        with open_publication(str(tmp_path)) as fast:
            Path(fast.staging, "fast").touch()
    assert (fast.version, slow.version) == (1, 2)
    assert os.listdir(tmp_path / "2") == ["slow"]


def test_publishing_sweeps_what_a_dead_exporter_left(tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "from moxserve.export.publish import open_publication\n"
        f"with open_publication({str(tmp_path)!r}) as staged:\n"
        "    open(staged.staging + '/saved_model.pb', 'w').close()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    (litter,) = os.listdir(tmp_path)
    assert litter.startswith(TEMP_PREFIX)
    assert list_versions(str(tmp_path)) == []
    with open_publication(str(tmp_path)) as staged:
        Path(staged.staging, "saved_model.pb").touch()
    assert os.listdir(tmp_path) == ["1"]


def test_other_schemes_are_told_and_file_urls_are_paths(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file engine for gs://"):
        check_version("gs://bucket/models", 1)
    with open_publication(f"file://{tmp_path}/models") as staged:
        Path(staged.staging, "saved_model.pb").touch()
    assert staged.path == str(tmp_path / "models" / "1")
    assert os.listdir(tmp_path) == ["models"]
