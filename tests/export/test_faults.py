"""Whatever goes wrong: a clear error, nothing published, nothing left in the target, TMPDIR or working directory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import (
    DataError,
    ExportError,
    MoxserveError,
    ServerUnreachableError,
    UsageError,
    VerificationError,
)
from moxserve.export.job import SavedModelJob
from moxserve.export.manifest import check_files, read_manifest
from moxserve.export.publish import list_versions
from moxserve.export.targets import Target, VariantOptions
from moxserve.file.atomic import TEMP_PREFIX

_WIDTH = 500
_ROWS = np.random.default_rng(5).random((40, _WIDTH), np.float32)


@dataclass
class Room:
    """The places where an export could leave something.

    Attributes:
        base: where versions are published; not there yet.
        tmpdir: the folder for temporary files.
        cwd: the working directory.
    """

    base: Path
    tmpdir: Path
    cwd: Path

    def litter(self) -> list[str]:
        """What is there that is no version."""
        places = [self.tmpdir, self.cwd, *([self.base] if self.base.is_dir() else [])]
        found = [os.path.join(place, name) for place in places for name in os.listdir(place)]
        return [path for path in found if not (os.path.dirname(path) == str(self.base) and path[-1].isdigit())]

    def assert_nothing(self) -> None:
        """Nothing was published, and nothing left."""
        assert self.litter() == []
        assert not self.base.is_dir() or os.listdir(self.base) == []


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    """An empty target, TMPDIR and working directory."""
    made = Room(tmp_path / "room" / "models", tmp_path / "tmpdir", tmp_path / "cwd")
    for folder in (made.base.parent, made.tmpdir, made.cwd):
        folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(made.tmpdir))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(made.cwd)
    return made


@pytest.fixture(scope="session")
def dense_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SavedModel with a weight of 1 MB."""
    return _save(tmp_path_factory.mktemp("dense") / "model", lambda tf, x, w: tf.matmul(tf.nn.relu(x), w))


@pytest.fixture(scope="session")
def gamma_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SavedModel with an operation that ONNX does not have."""
    return _save(tmp_path_factory.mktemp("gamma") / "model", lambda tf, x, w: tf.math.igamma(x + 1.0, tf.matmul(x, w)))


def _save(path: Path, compute: Callable[..., Any]) -> str:
    from moxserve.tensorflow.executor.env import tf, tf1

    with tf.Graph().as_default(), tf1.Session() as session:
        x = tf1.placeholder(tf.float32, [None, _WIDTH], "x")
        values = np.abs(np.random.default_rng(1).standard_normal((_WIDTH, _WIDTH))).astype(np.float32)
        weights = tf1.get_variable("w", [_WIDTH, _WIDTH])
        y = compute(tf, x, weights)
        weights.load(values, session)
        tf1.saved_model.simple_save(session, str(path), {"x": x}, {"y": y})
    return str(path)


def job_of(model: str, room: Room, **changes: Any) -> SavedModelJob:
    options = {"base_dir": str(room.base), "samples": {"x": _ROWS}, "model_name": "m", "warmup_batches": (1,)}
    return SavedModelJob(model, **{**options, **changes})


def variants(*names: str, **options: Any) -> VariantOptions:
    return VariantOptions(targets=tuple(Target(name) for name in names), measure=False, **options)


# ---- the target


def test_a_target_that_is_a_file(dense_model: str, room: Room, export: Any) -> None:
    room.base.write_text("mine")
    with pytest.raises(UsageError, match=r"room/models' is a file; expected a directory"):
        export(job_of(dense_model, room))
    assert room.base.read_text() == "mine"
    assert room.litter() == []


def test_a_target_below_a_file(dense_model: str, room: Room, export: Any) -> None:
    room.base.write_text("mine")
    with pytest.raises(ExportError, match=r"version: nothing can be written to '.*deep': Not a directory"):
        export(job_of(dense_model, room, base_dir=str(room.base / "deep")))
    assert room.base.read_text() == "mine"


def test_a_target_whose_name_is_too_long(dense_model: str, room: Room, export: Any) -> None:
    with pytest.raises(ExportError, match=r"nothing can be written to '.*': File name too long"):
        export(job_of(dense_model, room, base_dir=str(room.base / ("x" * 300))))
    room.assert_nothing()


def test_a_version_whose_name_is_too_long(dense_model: str, room: Room, export: Any) -> None:
    with pytest.raises(UsageError, match=r"version 'vvv.* has 300 characters; a folder name has up to 255 bytes"):
        export(job_of(dense_model, room, version="v" * 300))
    room.assert_nothing()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str, str], Path]]:
    """`mount("disk", "size=1m")`: a small file system; skips where that is not permitted."""
    mounted: list[Path] = []

    def run(name: str, options: str) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    if shutil.which("mount") is None:
        pytest.skip("there is no program to mount a file system with")
    yield run
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_target_that_may_only_be_read(dense_model: str, room: Room, export: Any, mount: Any) -> None:
    base = mount("readonly", "ro,size=1m")
    with pytest.raises(ExportError, match=r"nothing can be written to '.*readonly': Read-only file system"):
        export(job_of(dense_model, room, base_dir=str(base)))
    assert os.listdir(base) == []
    room.assert_nothing()


@pytest.mark.parametrize("size_kib", [100, 980, 1012])
def test_a_full_disk(size_kib: int, dense_model: str, room: Room, export: Any, mount: Any) -> None:
    """The model has 1000 KiB: nothing fits, or the graph only, or all but what comes last."""
    base = mount("disk", f"size={size_kib}k")
    rows = {"x": np.concatenate([_ROWS] * 4)}
    with pytest.raises(ExportError, match="No space left on device"):
        export(job_of(dense_model, room, base_dir=str(base), samples=rows, warmup_batches=(100,)))
    assert os.listdir(base) == []
    room.assert_nothing()


def test_a_version_that_was_there_survives_a_full_disk(dense_model: str, room: Room, export: Any, mount: Any) -> None:
    base = mount("disk", "size=1900k")
    first = export(job_of(dense_model, room, base_dir=str(base)))
    with pytest.raises(ExportError, match="No space left on device"):
        export(job_of(dense_model, room, base_dir=str(base), keep=1))
    assert os.listdir(base) == ["1"]
    assert check_files(first.path) == []


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(dense_model: str, room: Room) -> None:
    """As under a quota; in a process of its own, which sets the limit on itself."""
    code = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "from moxserve.cli.main import main\n"
        "main()\n"
    )
    arguments = ["export", dense_model, "--tf-serving", str(room.base)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    room.assert_nothing()


# ---- the source


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("no variables", "variables"),
        ("half of the variables", "variables|data|truncated|corrupt|checksum|Read"),
        ("garbage for a graph", "saved_model.pb"),
        ("half a graph", "saved_model.pb"),
        ("no graph", "saved_model.pb|SavedModel"),
    ],
)
def test_a_source_that_cannot_be_read(
    damage: str, told: str, dense_model: str, room: Room, export: Any, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dense_model, copy)
    graph, data = copy / "saved_model.pb", copy / "variables" / "variables.data-00000-of-00001"
    if damage == "no variables":
        shutil.rmtree(copy / "variables")
    elif damage == "half of the variables":
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    elif damage == "garbage for a graph":
        graph.write_bytes(np.random.default_rng(0).bytes(1000))
    elif damage == "half a graph":
        graph.write_bytes(graph.read_bytes()[: graph.stat().st_size // 2])
    else:
        graph.unlink()
    with pytest.raises(MoxserveError, match=told) as raised:
        export(job_of(str(copy), room))
    assert "Traceback" not in raised.value.message
    room.assert_nothing()


def test_a_source_without_permission(dense_model: str, room: Room, export: Any, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    copy = tmp_path / "copy"
    shutil.copytree(dense_model, copy)
    (copy / "saved_model.pb").chmod(0)
    with pytest.raises(MoxserveError, match="Permission denied"):
        export(job_of(str(copy), room))
    room.assert_nothing()


def test_a_signature_that_does_not_exist(dense_model: str, room: Room, export: Any) -> None:
    with pytest.raises(UsageError, match=r"there is no signature 'serving_defualt'; did you mean 'serving_default'\?"):
        export(job_of(dense_model, room, variants=VariantOptions(signature="serving_defualt")))
    room.assert_nothing()


def test_samples_that_do_not_fit(dense_model: str, room: Room, export: Any) -> None:
    with pytest.raises(MoxserveError, match="x"):
        export(job_of(dense_model, room, samples={"x": np.ones([3, 7], np.float32)}))
    room.assert_nothing()


# ---- variants


@pytest.mark.slow
def test_an_operation_that_onnx_does_not_have(gamma_model: str, room: Room, export: Any) -> None:
    """The variant is left out and told; where it is required, nothing is published."""
    result = export(job_of(gamma_model, room, variants=variants("onnx")))
    (note,) = [note for note in result.notes if note.startswith("variant onnx failed: ")]
    assert "Igamma" in note
    assert not os.path.exists(os.path.join(result.path, "variants"))
    manifest = read_manifest(result.path)
    assert manifest is not None
    assert [variant.name for variant in manifest.variants] == ["saved_model"]
    assert room.litter() == []
    with pytest.raises(VerificationError, match=r"making variants: .*onnx.*Igamma"):
        export(job_of(gamma_model, room, variants=variants("onnx", require=["onnx"])))
    assert os.listdir(room.base) == ["1"]
    assert room.litter() == []


@pytest.mark.slow
def test_a_full_disk_while_variants_are_made(dense_model: str, room: Room, export: Any, mount: Any) -> None:
    base = mount("disk", "size=2300k")
    with pytest.raises(MoxserveError, match="No space left on device"):
        export(job_of(dense_model, room, base_dir=str(base), variants=variants("frozen", require=["frozen"])))
    assert os.listdir(base) == []
    room.assert_nothing()


@pytest.mark.slow
def test_a_full_tmpdir(dense_model: str, room: Room, export: Any, mount: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some converters write there; what needs no temporary files is made."""
    tmpdir = mount("small", "size=64k")
    monkeypatch.setenv("TMPDIR", str(tmpdir))
    monkeypatch.setattr(tempfile, "tempdir", None)
    options = VariantOptions(targets=(Target("frozen"), Target("onnx", "dynamic")), measure=False)
    result = export(job_of(dense_model, room, variants=options))
    (note,) = [note for note in result.notes if note.startswith("variant onnx_dynamic failed: ")]
    assert "space" in note.lower() or "write" in note.lower()
    assert os.listdir(os.path.join(result.path, "variants")) == ["frozen"]
    assert check_files(result.path) == []
    assert os.listdir(tmpdir) == []
    assert room.litter() == []


# ---- signals

KILLS = """
import glob, json, os, signal, sys, time
import numpy as np
import tensorflow  # once, for all the children
import moxserve.export.exporter as exporter
from moxserve.export.job import SavedModelJob
from moxserve.export.targets import Target, VariantOptions

model, base, tmpdir = sys.argv[1:4]
points = sys.argv[4:]
options = VariantOptions(targets=(Target("frozen"), Target("onnx", "dynamic")), measure=False)
rows = np.random.default_rng(5).random((40, 500), np.float32)
job = SavedModelJob(model, base_dir=base, samples={"x": rows}, model_name="m", warmup_batches=(1,), variants=options)

def start():
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            exporter.export_version(job)
            status = 0
        finally:
            os._exit(status)
    return pid

def workers():
    found = []
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as f:
                if os.environ["MARK"].encode() in f.read():
                    found.append(int(path.split("/")[2]))
        except OSError:
            pass
    return [pid for pid in found if pid != os.getpid()]

report = []
for point in points:
    pid = start()
    deadline = time.monotonic() + 300
    pattern = os.path.join(base, ".moxserve-tmp-*", point)
    while not glob.glob(pattern, include_hidden=True) and time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            pid = 0
            break
        time.sleep(0.005)
    if pid:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    deadline = time.monotonic() + 100
    while workers() and time.monotonic() < deadline:
        time.sleep(0.05)
    report.append({"point": point, "killed": bool(pid), "workers": workers(),
                   "versions": [n for n in os.listdir(base) if n.isdigit()],
                   "staged": [n for n in os.listdir(base) if n.startswith(".moxserve-tmp-")]})
status = os.waitpid(start(), 0)[1]
print(json.dumps({"kills": report, "status": status}))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_9_at_every_step_of_an_export_with_variants(dense_model: str, room: Room) -> None:
    """No half version, no process that goes on; the next export removes what was left."""
    points = [
        "variables",
        ".work/rows",
        "variants/frozen/saved_model.pb",
        "variants/onnx_dynamic",
        "assets.extra/tf_serving_warmup_requests",
    ]
    room.base.mkdir()
    run = subprocess.run(
        [sys.executable, "-c", KILLS, dense_model, str(room.base), str(room.tmpdir), *points],
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
        env={**os.environ, "MARK": f"mark-{uuid.uuid4().hex}"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    report = json.loads(run.stdout.splitlines()[-1])
    assert report["status"] == 0, run.stderr[-3000:]
    for kill in report["kills"]:
        # The last steps take milliseconds: what was not hit was published whole.
        assert kill["workers"] == [], kill
    hits = [kill for kill in report["kills"] if kill["killed"]]
    assert len(hits) >= 4
    assert any(kill["staged"] for kill in hits)
    for version in list_versions(str(room.base)):
        path = str(room.base / str(version))
        assert check_files(path) == []
        assert read_manifest(path) is not None
    assert room.litter() == []


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_a_signal_to_the_command_line(signum: signal.Signals, dense_model: str, room: Room, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=_ROWS)
    process = subprocess.Popen(
        [
            sys.executable, "-m", "moxserve", "export", dense_model, "--tf-serving", str(room.base), "--frozen",
            "--rows", str(tmp_path / "rows.npz"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 140
        while not list(room.base.glob(f"{TEMP_PREFIX}*/.work/model")) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signum)
        _, told = process.communicate(timeout=140)
    finally:
        process.kill()
    assert process.returncode == 128 + signum, told
    assert "Traceback" not in told
    assert "interrupted before a version was published" in told
    room.assert_nothing()


def test_what_was_asked_for_is_checked_before_any_work(dense_model: str, room: Room, export: Any) -> None:
    """A typing mistake is told in a second, not after minutes of converting."""
    for changes in (
        {"version": "a/b"},
        {"warmup_logs": ["nothing.tfrecord"]},
        {"push": "not an address/"},
        {"push": "localhost:1", "version": "candidate"},
        {"report_dir": os.path.join(__file__, "report")},
        {"variants": VariantOptions(targets=(Target("frozen"),), require=["frozen.top1_agreemnt>=1"])},
    ):
        with pytest.raises(UsageError):
            export(job_of(dense_model, room, **changes))
        assert not room.base.exists()
    with pytest.raises(UsageError, match="keep 0"):
        job_of(dense_model, room, keep=0)
    room.assert_nothing()


def test_old_versions_stay_when_the_server_does_not_serve_the_new_one(
    dense_model: str, room: Room, export: Any
) -> None:
    export(job_of(dense_model, room))
    with socket.socket() as unheard:
        unheard.bind(("localhost", 0))
        push = f"localhost:{unheard.getsockname()[1]}"
        with pytest.raises(ServerUnreachableError, match="version 2 of 'm' is published"):
            export(job_of(dense_model, room, keep=1, push=push))
    assert list_versions(str(room.base)) == [1, 2]


@pytest.mark.slow
def test_what_is_required_of_the_saved_model_counts_without_variants(dense_model: str, room: Room, export: Any) -> None:
    with pytest.raises(VerificationError, match=r"saved_model: size_mb is 1\.0\d+, required is <= 0\.5"):
        export(job_of(dense_model, room, variants=variants(require=["saved_model.size_mb<=0.5"])))
    room.assert_nothing()


def test_a_model_file_of_another_kind(room: Room, export: Any, tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "model.bin").write_bytes(b"x")
    with pytest.raises((DataError, ExportError, UsageError), match="odd"):
        export(job_of(str(tmp_path / "odd"), room))
    room.assert_nothing()
