"""A model_fn, its inputs and its rows, as a command line names them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moxserve.errors import DataError, UsageError
from moxserve.export.sources.model_fn import load_model_fn, parse_input, read_rows
from moxserve.types import DTYPES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("images=uint8[?,28,28,1]", "images: uint8[?, 28, 28, 1]"),
        (" x = float32 [ None , -1, 3 ] ", "x: float32[?, ?, 3]"),
        ("n=int64[]", "n: int64[]"),
        ("tower/x:0=string[?]", "tower/x:0: string[?]"),
    ],
)
def test_an_input_is_read(text: str, expected: str) -> None:
    assert str(parse_input(text)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images", r"input 'images': expected NAME=DTYPE\[SHAPE\], such as"),
        ("images=uint8", "expected NAME=DTYPE"),
        ("=uint8[3]", "expected NAME=DTYPE"),
        ("x=uint8[3", "expected NAME=DTYPE"),
        ("x=uint9[3]", "no element type 'uint9'; did you mean 'uint8'"),
        ("x=uint8[a]", "'a' is no dimension"),
        ("x=uint8[-3]", "'-3' is no dimension"),
        ("x=uint8[3,,4]", "'' is no dimension"),
        ("x=uint8[1.5]", "'1.5' is no dimension"),
        (f"x=uint8[{'9' * 5000}]", "is no dimension"),
    ],
)
def test_an_input_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_input(text)


@given(
    st.text("abc_/:.09", min_size=1),
    st.sampled_from([d.name for d in DTYPES]),
    st.lists(st.one_of(st.none(), st.integers(0, 10**6))),
)
def test_whatever_is_written_is_read(name: str, dtype: str, shape: list[int | None]) -> None:
    spec = parse_input(f"{name}={dtype}[{','.join('?' if d is None else str(d) for d in shape)}]")
    assert (spec.name, spec.dtype.name, spec.shape) == (name, dtype, tuple(shape))


@given(st.text().filter(lambda text: "=" not in text))
def test_anything_else_is_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_input(text)
    assert repr(text) in raised.value.message


MODULE = """
from {module} import scale

def model_fn(inputs, mode):
    return scale

class Net:
    build = model_fn

three = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `net_a.py`, which imports `helper_a.py` beside it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "helper_a.py").write_text("scale = 2\n")
    (tmp_path / "code" / "net_a.py").write_text(MODULE.format(module="helper_a"))
    yield tmp_path / "code"
    for name in ("net_a", "helper_a", "broken_a"):
        sys.modules.pop(name, None)


def test_a_function_of_a_file_or_a_module(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_model_fn(f"{folder}/net_a.py:model_fn")([], "EXPORT") == 2
    assert load_model_fn(f"{folder}/net_a.py:Net.build")([], "EXPORT") == 2
    monkeypatch.chdir(folder)
    sys.modules.pop("net_a", None)
    assert load_model_fn("net_a:model_fn")([], "EXPORT") == 2
    assert load_model_fn("os.path:join")("a", "b") == "a/b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("net_a.py", r"expected package.module:function or file.py:function"),
        ("{folder}/net_a.py:model_fm", "has no 'model_fm'; did you mean 'model_fn'"),
        ("{folder}/net_a.py:three", "is a int; expected a function: model_fn"),
        ("{folder}/other.py:model_fn", "there is no file '.*other.py'"),
        ("no_such_package_a.net:model_fn", "there is no module 'no_such_package_a'"),
        ("os.nothing_a:model_fn", "there is no module 'os.nothing_a'|importing os.nothing_a failed"),
        (":x", "expected package"),
    ],
)
def test_a_function_that_is_not_there(text: str, message: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=message):
        load_model_fn(text.format(folder=folder))


def test_what_fails_while_it_is_imported_is_placed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = folder / "broken_a.py"
    broken.write_text("\n\nraise ValueError('no luck')\n")
    with pytest.raises(UsageError, match=r"importing .* failed at .*broken_a\.py:3: ValueError: no luck"):
        load_model_fn(f"{broken}:model_fn")
    broken.write_text("x = 1\nif x\n")
    with pytest.raises(UsageError, match=r"broken_a\.py:2: "):
        load_model_fn(f"{broken}:model_fn")
    broken.write_text("import no_such_package_b\n")
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError, match=r"importing broken_a failed at .*:1: ModuleNotFound.*no_such_package_b"):
        load_model_fn("broken_a:model_fn")


def test_rows_are_read_in_the_order_of_the_inputs(tmp_path: Path) -> None:
    inputs = [parse_input("b=uint8[?,2]"), parse_input("label=int64[?]")]
    b, label = np.arange(8, dtype=np.uint8).reshape(4, 2), np.array([3, 1, 2, 0])
    np.savez(tmp_path / "rows.npz", label=label, b=b)
    rows = read_rows(str(tmp_path / "rows.npz"), inputs, 3)
    np.testing.assert_array_equal(rows[0], b[:3])
    np.testing.assert_array_equal(rows[1], label[:3])
    np.savez(tmp_path / "other.npz", b=b, c=label)
    with pytest.raises(DataError, match="holds b, c; expected b, label"):
        read_rows(str(tmp_path / "other.npz"), inputs)


def test_rows_of_other_shapes_and_no_rows(tmp_path: Path) -> None:
    inputs = [parse_input("x=float32[?,?]")]
    (tmp_path / "rows.jsonl").write_text("[1.0]\n[1.0, 2.0]\n")
    with pytest.raises(DataError, match=r"rows.jsonl:2: input 'x' is \[2\]; in rows.jsonl:1 it is \[1\]"):
        read_rows(str(tmp_path / "rows.jsonl"), inputs)
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no rows in it"):
        read_rows(str(tmp_path / "rows.jsonl"), inputs)


HALF = """
import moxserve.tensorflow as mox
from moxserve.tensorflow.executor.env import tf1

def model_fn(inputs, mode, **kwargs):
    y = tf1.get_variable("a", []) * inputs[0] + tf1.get_variable("b", [])
    return mox.ModelSpec(export_spec=mox.ExportSpec({"x": inputs[0]}, {"y": y}))
"""


@pytest.mark.slow
def test_a_checkpoint_is_exported_from_the_command_line(
    half_job: Any, run_moxserve: Any, load_model: Any, tmp_path: Path
) -> None:
    (tmp_path / "half.py").write_text(HALF)
    np.save(tmp_path / "rows.npy", half_job.samples[0])
    words = ["--model-fn", "half.py:model_fn", "--input", "x=float32[?]", "--rows", "rows.npy", "--tf-serving", "out"]
    run = run_moxserve("export", half_job.checkpoint, *words, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "max error 0 on 40 real rows" in run.stdout
    assert load_model(str(tmp_path / "out" / "1"))("serving_default", x=[4.0])["y"].tolist() == [4.0]
