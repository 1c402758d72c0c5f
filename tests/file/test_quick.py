"""Many files to and from a store by obstore: the same as by boto3, whatever goes wrong; and ranges of large ones."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from moxserve import file
from moxserve.file import quick, ranges
from moxserve.file.copying import Place
from moxserve.file.native import is_plain

pytest.importorskip("obstore")

MIB = 1 << 20
PATIENCE = 4  # attempts, by the fixture
ODD = ["a b", "100%", "+plus", "ü", "ﬁ", "a//b", "d/.", "..e", "f..", "k=v", "a@b", "x,y", "-", "~", "a'b", "a&b?c=d#e"]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Forty files, one of them empty, one too large for obstore's way up."""
    folder = tmp_path / "many"
    (folder / "sub").mkdir(parents=True)
    for number in range(40):
        (folder / "sub" / f"{number:02}").write_bytes(os.urandom(3000) * (number % 5))
    (folder / "large").write_bytes(os.urandom(MIB + 1))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(raw: Any) -> dict[str, bytes]:
    keys = raw.keys()
    return {key: raw.get(key) for key in keys}


def by_obstore(proxy: Any) -> int:
    """Return how many requests obstore made."""
    return sum(headers.get("user-agent", "").startswith("object_store") for headers in proxy.headers)


def test_there_and_back(proxy: Any, s3: str, raw: Any, many: Path, tmp_path: Path) -> None:
    file.copy_parallel(many, s3)
    assert by_obstore(proxy) == 40
    assert stored(raw) == contents(many)
    proxy.headers.clear()
    file.copy_parallel(s3, tmp_path / "back")
    assert by_obstore(proxy) == 41
    assert contents(tmp_path / "back") == contents(many)


def test_keys_are_what_they_are(proxy: Any, s3: str, raw: Any, tmp_path: Path) -> None:
    names = [name for name in ODD if not name.startswith("a//") and not name.endswith("/.")]
    for number, name in enumerate([*names, *(f"plain{n}" for n in range(20))]):
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_text(f"{number}")
    file.copy_parallel(tmp_path / "up", s3)
    assert stored(raw) == contents(tmp_path / "up")
    assert by_obstore(proxy) >= 20
    file.copy_parallel(s3, tmp_path / "down")
    assert contents(tmp_path / "down") == contents(tmp_path / "up")


@pytest.mark.parametrize("key", ODD)
def test_keys_that_obstore_would_change_are_left_to_boto3(key: str) -> None:
    plain = key in ("..e", "f..", "k=v", "a@b", "x,y", "-", "+plus")
    assert is_plain(key) == plain
    assert not is_plain(f"{key}/")
    assert not is_plain(f"/{key}")


@pytest.mark.parametrize(
    "fault",
    [
        ("status", 503),
        ("lose",),
        *(pytest.param(x, marks=pytest.mark.slow) for x in [("reset",), ("status", 429), ("cut", 500), ("hang", 20)]),
    ],
    ids=str,
)
def test_failures_are_survived(fault: Any, proxy: Any, s3: str, raw: Any, many: Path, tmp_path: Path) -> None:
    if fault[0] == "hang":
        file.set_auth(client_timeout=2, retry=30)  # attempts are left where a busy machine is late
    proxy.first(3, fault, "PUT")
    file.copy_parallel(many, s3)
    assert stored(raw) == contents(many)
    proxy.first(3, fault, "GET", "/sub/")
    file.copy_parallel(s3, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(many)


def test_a_short_body_is_no_file(proxy: Any, s3: str, raw: Any, many: Path, tmp_path: Path) -> None:
    file.copy_parallel(many, s3)
    proxy.first(3, ("end", 100), "GET", "/sub/")
    file.copy_parallel(s3, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(many)
    proxy.first(100_000, ("end", 0), "GET", "/sub/")
    with pytest.raises(file.MoxFileReadException, match=r"only 0 of \d+ bytes came"):
        file.copy_parallel(s3, tmp_path / "none", threads=2)
    assert not any(contents(tmp_path / "none" / "sub").values())


def test_a_store_that_fails_for_good_is_told_and_not_asked_for_ever(proxy: Any, s3: str, many: Path) -> None:
    proxy.first(100_000, ("status", 500), "PUT")
    with pytest.raises(file.MoxFileRespException) as raised:
        file.copy_parallel(many, s3, threads=1)
    assert raised.value.resp.status == 500
    assert proxy.count("PUT") <= 2 * (PATIENCE + 1)  # the file that failed, and one that was in hand


def test_one_attempt_is_one(proxy: Any, s3: str, many: Path) -> None:
    file.set_auth(retry=1)
    proxy.first(1, ("status", 500), "PUT")
    with pytest.raises(file.MoxFileRespException):
        file.copy_parallel(many, s3, threads=1)
    assert by_obstore(proxy) == 0


def test_wrong_keys_are_told_as_ever(proxy: Any, s3: str, many: Path) -> None:
    file.set_auth(ak="nobody-knows-me", sk="neither-this-one")
    with pytest.raises(file.MoxFileRespException) as raised:
        file.copy_parallel(many, s3)
    assert raised.value.resp.status == 403
    assert "neither-this-one" not in str(raised.value)
    assert by_obstore(proxy) >= 1


def _copy(source: str, target: str) -> None:
    file.copy_parallel(source, target)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_copies_too(s3: str, raw: Any, many: Path) -> None:
    file.copy_parallel(many, f"{s3}/one")
    child = multiprocessing.get_context("fork").Process(target=_copy, args=(str(many), f"{s3}/two"))
    child.start()
    child.join(200)
    try:
        assert child.exitcode == 0
    finally:
        child.kill()
    assert {key: raw.get(f"two/{key}") for key in contents(many)} == contents(many)


def test_a_few_files_are_not_worth_it(s3: str, tmp_path: Path) -> None:
    assert not quick.is_quick(Place.of(tmp_path), Place.of(s3), 3)
    assert not quick.is_quick(Place.of(s3), Place.of(f"{s3}/other"), 1000)
    assert quick.is_quick(Place.of(tmp_path), Place.of(s3), 1000)


@pytest.mark.parametrize("name", ["AWS_SERVER_SIDE_ENCRYPTION", "AWS_SKIP_SIGNATURE"])
def test_what_obstore_alone_would_obey_keeps_it_out(s3: str, tmp_path: Path, name: str, monkeypatch: Any) -> None:
    monkeypatch.setenv(name, "true")
    assert not quick.is_quick(Place.of(tmp_path), Place.of(s3), 1000)


def test_a_variable_that_boto3_does_not_read_harms_nothing(s3: str, raw: Any, many: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("AWS_DISABLE_TAGGING", "perhaps")
    file.copy_parallel(many, s3)
    assert stored(raw) == contents(many)


@pytest.mark.parametrize("authorities", ["AWS_CA_BUNDLE", "set_auth"])
def test_obstore_which_trusts_the_systems_authorities_too_does_not_go_by_a_file_of_them(
    authorities: str, s3: str, tmp_path: Path, monkeypatch: Any
) -> None:
    own = tmp_path / "own.pem"
    own.touch()
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://localhost:1")
    assert quick.is_quick(Place.of(tmp_path), Place.of(s3), 1000)
    if authorities == "set_auth":
        file.set_auth(ssl_verify=str(own))
    else:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(own))
    assert not quick.is_quick(Place.of(tmp_path), Place.of(s3), 1000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:1")
    assert quick.is_quick(Place.of(tmp_path), Place.of(s3), 1000)


# Ranges


@pytest.fixture
def small_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges are worth it from a megabyte on."""
    monkeypatch.setattr(ranges, "WORTH_BYTES", MIB)
    monkeypatch.setattr(ranges, "_LEAST_SPAN_BYTES", 300_000)


@pytest.mark.parametrize("fault", [("none",), ("end", 70_000), ("status", 503)], ids=str)
def test_a_large_object_comes_in_ranges(
    fault: Any, proxy: Any, s3: str, raw: Any, tmp_path: Path, small_spans: None
) -> None:
    data = os.urandom(3 * MIB + 17)
    raw.put("f", data)
    proxy.first(3, fault, "GET", "/f")
    file.copy(f"{s3}/f", str(tmp_path / "f"))
    assert (tmp_path / "f").read_bytes() == data
    assert sum("range" in headers for headers in proxy.headers) >= 7
    assert by_obstore(proxy) == 7
    assert all(h.get("if-match") == raw.head("f")["ETag"] for h in proxy.headers if "range" in h)


def test_an_object_that_is_replaced_meanwhile_is_no_mixture(
    proxy: Any, s3: str, raw: Any, tmp_path: Path, small_spans: None
) -> None:
    raw.put("f", bytes(3 * MIB))
    (tmp_path / "f").write_text("old")

    def replaced(method: str, path: str, headers: dict[str, str]) -> None:
        if headers.get("range", "").startswith("bytes=1"):
            raw.put("f", b"1" * 3 * MIB)

    proxy.fault = replaced
    with pytest.raises(file.MoxFileReadException, match="was replaced while it was read"):
        file.copy(f"{s3}/f", str(tmp_path / "f"))
    assert (tmp_path / "f").read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]
