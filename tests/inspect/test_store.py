"""`moxserve inspect` of what lies in a store: as of files here, told by URL, and no more fetched than is asked for."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from moxserve import file
from moxserve.cli.main import cli
from moxserve.errors import MoxserveError, UsageError
from moxserve.inspect.detect import detect
from moxserve.protocol.tfrecord import read_records


class Told:
    """Runs `moxserve inspect`, and sees to it that no path of this machine is told and nothing stays here."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    def __call__(self, *args: object, status: int = 0) -> Any:
        result = CliRunner().invoke(cli, ["inspect", *map(str, args)])
        error = result.exception if isinstance(result.exception, MoxserveError) else None
        assert (error.exit_code if error else result.exit_code) == status, result.output
        said = result.output + (f"{error.message} {error.hint}" if error else "")
        assert str(self._scratch) not in said
        assert list(self._scratch.glob(f"{file.TEMP_PREFIX}*")) == []
        return json.loads(result.stdout) if "--json" in args else said


@pytest.fixture
def told(scratch: Path, store: Any) -> Told:
    return Told(scratch)


@pytest.fixture
def fetched(store: Any) -> Any:
    """Gives the names of the objects that were read since it was asked last."""

    def since() -> list[str]:
        names = [path.rpartition("/")[2] for method, path in store.calls if method == "GET"]
        store.calls.clear()
        return [name for name in names if name not in ("", store.bucket)]

    return since


@pytest.mark.slow
def test_models_are_told_by_their_url(told: Told, store: Any, fetched: Any, saved_v2: Path, tmp_path: Path) -> None:
    for version in ("9", "00000010"):
        file.copy_parallel(saved_v2, f"{store.base}/{version}")
    url = f"{store.base}/00000010"
    local = tmp_path / "10"
    shutil.copytree(saved_v2, local)
    fetched()

    assert detect(f"{store.base}/").path == url
    found, here = told("show", store.base, "--json"), told("show", local, "--json")
    assert (found["path"], found["notes"]) == (url, ["version 10, the newest of 2: 9, 10"])
    assert {**found, "path": "", "notes": []} == {**here, "path": "", "notes": []}
    assert "variables.data-00000-of-00001" in fetched()

    assert told("signatures", url, "--json")["signatures"] == here["signatures"]
    assert told("ops", f"{url}/saved_model.pb", "--json")["path"] == f"{url}/saved_model.pb"
    assert "variables.data-00000-of-00001" not in fetched()
    told("graph", url, "--out", f"{store.base}/logs")
    told("graph", local, "--out", f"{store.base}/logs/")
    assert len(file.glob(f"{store.base}/logs/events*")) >= 1

    rows = told("variables", url, "--stats", "--json")
    assert rows["path"] == f"{url}/variables/variables"
    assert rows["variables"] == told("variables", local, "--stats", "--json")["variables"]
    assert told("diff", url, local, "--json")["different"] == 0
    assert "has no warmup records" in told("warmup", url, status=2)


@pytest.mark.slow
def test_of_checkpoints_the_newest_is_fetched(told: Told, store: Any, fetched: Any, trained: Any) -> None:
    url = f"{store.base}/run"
    file.copy_parallel(Path(trained.prefix).parent, url)
    for name in ("index", "data-00000-of-00001"):
        file.copy(f"{trained.prefix}.{name}", f"{url}/model.ckpt-0.{name}")
    fetched()

    rows = told("show", url, "--json")["checkpoints"]
    assert [(row["checkpoint"], row["meta"]) for row in rows] == [("model.ckpt-0", "no"), ("model.ckpt-1", "yes")]
    assert rows[0]["size"] == told("show", f"{url}/model.ckpt-0", "--json")["checkpoints"][0]["size"]
    assert fetched() == []

    said = told("checkpoint", url, "--filter", "net/bias")
    assert said.startswith(f"{url}/model.ckpt-1\n")
    assert "model.ckpt-1, the newest checkpoint there" in said
    assert not any("ckpt-0" in name for name in fetched())
    found = told("checkpoint", f"{url}/model.ckpt-0.index", "--print", "net/wide", "--json")
    np.testing.assert_allclose(found["net/wide"], trained.values["net/wide"], rtol=1e-6)
    store.client.delete_object(Bucket=store.bucket, Key="team/digits/run/model.ckpt-1.data-00000-of-00001")
    assert f"no checkpoint at '{url}/model.ckpt-1'" in told("checkpoint", f"{url}/model.ckpt-1", status=1)


@pytest.mark.slow
def test_conversions_go_from_store_to_store(told: Told, store: Any, trained: Any, saved_v2: Path) -> None:
    file.copy_parallel(Path(trained.prefix).parent, f"{store.base}/run")
    file.copy_parallel(saved_v2, f"{store.base}/model")

    npz = f"{store.base}/w.npz"
    assert told("convert", f"{store.base}/model", npz, "--json")["path"] == npz
    with np.load(io.BytesIO(store.read("team/digits/w.npz"))) as arrays:
        assert sorted(arrays) == ["factor", "shift"]
    assert f"'{npz}' exists already" in told("convert", f"{store.base}/model", npz, status=2)
    assert "variables  2" in told("diff", npz, f"{store.base}/model", "--no-values", status=5)

    old = f"{store.base}/old/model.ckpt"
    assert told("convert", npz, old).startswith(f"wrote {old} (checkpoint) from {npz}\n")
    assert [key for key in store.listed() if "/old/" in key] == [
        "team/digits/old/model.ckpt.data-00000-of-00001",
        "team/digits/old/model.ckpt.index",
    ]
    assert told("diff", npz, old, "--json")["different"] == 0
    text = f"{store.base}/g.pbtxt"
    assert f"stay in {store.base}/model/variables" in told("convert", f"{store.base}/model", text)
    assert told("show", text, "--json")["kind"] == "graphdef"

    ends = ["--input", "x=x:0", "--output", "y=logits:0"]
    prefix, saved = f"{store.base}/run/model.ckpt-1", f"{store.base}/saved"
    store.write("team/digits/saved/of_before.txt")
    assert "will not be replaced" in told(
        "convert", prefix, f"{store.base}/w.npz", *ends, "--to", "savedmodel", status=2
    )
    told("convert", f"{prefix}.meta", saved, *ends, "--force")
    assert "team/digits/saved/of_before.txt" not in store.listed()
    assert told("variables", saved, "--json")["variables"]
    assert "exists already" in told("convert", prefix, saved, *ends, status=2)


def test_files_of_a_store_are_known_by_their_content(told: Told, store: Any, frozen: Path, tmp_path: Path) -> None:
    url = f"{store.base}/no_suffix"
    file.copy(frozen, url)
    assert (detect(url).kind, detect(url).path) == ("graphdef", url)
    assert told("variables", url, "--filter", "weights", "--json")["path"] == url
    store.write(
        "team/digits/m.xml", b"<net version='11'><layers><layer type='Const'><data size='8'/></layer></layers></net>"
    )
    assert f"problem: {store.base}" not in told("show", f"{store.base}/m.xml", status=1)
    store.write("team/digits/m.bin", bytes(8))
    assert told("show", f"{store.base}/m.xml", "--json")["weights"] == 1
    store.write("team/digits/log.tfrecord", b"not records")
    assert f"{store.base}/log.tfrecord: record 0 is cut off" in told("warmup", f"{store.base}/log.tfrecord", status=5)
    told("graph", frozen, "--out", f"s3://{store.bucket}")
    (events,) = file.glob(f"s3://{store.bucket}/events*")
    file.copy(events, tmp_path / "events")
    assert len(list(read_records(tmp_path / "events"))) == 2


def test_what_is_nothing_is_told_by_its_url(store: Any, told: Told, frozen: Path) -> None:
    store.write("team/digits/notes.txt", b"hello world")
    with pytest.raises(UsageError, match=rf"'{store.base}/note': no such file.*did you mean '{store.base}/notes.txt'"):
        detect(f"{store.base}/note")
    with pytest.raises(UsageError, match=r"it holds notes\.txt; expected"):
        detect(store.base)
    assert f"'{store.base}/notes.txt' is no file that can be inspected" in told(
        "show", f"{store.base}/notes.txt", status=2
    )
    with pytest.raises(UsageError, match=r"'s3://mistyped': no such file, directory or checkpoint$"):
        detect("s3://mistyped")
    assert "NoSuchBucket" in told("graph", frozen, "--out", "s3://mistyped/logs", status=1)
    assert "NoSuchBucket" in told("convert", frozen, "s3://mistyped/w.npz", status=1)
