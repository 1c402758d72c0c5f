"""Datapoints in files and back, and files that are damaged."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import moxserve.dataflow as df
from moxserve.dataflow.values import MAGIC, dumps, loads
from moxserve.errors import DataError, MoxserveError, UsageError
from moxserve.file import MoxFileNotExistsException
from moxserve.protocol.tfrecord import read_records, write_records

SERIALIZERS = [df.LMDBSerializer, df.NumpySerializer, df.TFRecordSerializer]


def same(a: Any, b: Any) -> bool:
    """Equal in value and type, down to the last component."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (np.ndarray, np.generic)):
        if a.dtype != b.dtype or np.shape(a) != np.shape(b):
            return False
        if a.dtype == object:
            return all(same(x, y) for x, y in zip(a.flat, b.flat, strict=True))
        return np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return a == b or (a != a and b != b)


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.integers(-(2**70), 2**70)
)
ARRAYS = npst.arrays(
    npst.scalar_dtypes() | npst.byte_string_dtypes() | npst.unicode_string_dtypes() | npst.array_dtypes(),
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
VALUES = st.recursive(
    SCALARS | ARRAYS,
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.lists(inside, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inside, max_size=3)
    ),
    max_leaves=6,
)


@given(VALUES)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_values_come_back_as_they_were(value: Any) -> None:
    assert same(loads(dumps(value)), value)


@pytest.mark.parametrize(
    "value",
    [
        np.float32(1.5),
        np.str_("a"),
        np.datetime64("2020-01-01T00:00", "ns"),
        np.array(3),
        np.arange(12).reshape(3, 4)[:, ::2],
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array([b"a\0", None, np.arange(2)], object),
        np.array([], object),
        np.zeros((0, 5), np.uint8),
        np.array([(1, "a")], [("n", "<i4"), ("s", "<U1")]),
        "\ud800",
        2**64,
        -(2**63) - 1,
    ],
)
def test_odd_values(value: Any) -> None:
    assert same(loads(dumps([value]))[0], value)


def test_arrays_that_were_read_can_be_written_to() -> None:
    data = dumps([np.zeros(3)])
    array = loads(memoryview(data))[0]
    array[0] = 1
    assert loads(data)[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        1j,
        np.array([object()]),
        np.zeros(1, [("o", object)]),
        print,
        np.ma.masked_array([1, 2], [0, 1]),
    ],
)
def test_what_cannot_be_written(value: Any) -> None:
    with pytest.raises(DataError, match="cannot write"):
        dumps([value])


def test_types_of_other_packages_cannot_be_written() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    # NumPy calls them V2, f1 and V1.
    for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fn):
        with pytest.raises(DataError, match="cannot write arrays of dtype"):
            dumps([np.zeros(2, dtype)])


def test_values_that_hold_themselves() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(DataError, match="or hold themselves"):
        dumps(value)


@given(st.binary(max_size=80))
def test_no_bytes_do_harm(data: bytes) -> None:
    with contextlib.suppress(DataError):
        loads(MAGIC + data)


@given(VALUES, st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_record_that_is_cut_off_is_an_error(value: Any, data: st.DataObject) -> None:
    record = dumps(value)
    with pytest.raises(DataError):
        loads(record[: data.draw(st.integers(0, len(record) - 1))])
    with pytest.raises(DataError, match="follow its end"):
        loads(record + b"\0")


def test_huge_counts_take_no_memory() -> None:
    for tag in (8, 9, 10):
        with pytest.raises(DataError, match="bytes are left"):
            loads(MAGIC + bytes([tag]) + (2**60).to_bytes(8, "little"))
    with pytest.raises(DataError, match="damaged"):
        loads(MAGIC + b"\x0d\x02" + (2**40).to_bytes(8, "little") * 2)
    with pytest.raises(DataError, match="levels deep"):
        loads(MAGIC + (b"\x08" + (1).to_bytes(8, "little")) * 100 + b"\0")


def test_pickles_are_read_only_when_trusted(tmp_path: Path) -> None:
    bomb = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(bomb),))

    data = pickle.dumps(Bomb())
    with pytest.raises(DataError, match=r"is a pickle(.|\n)*allow_pickle=True"):
        loads(data)
    assert not bomb.exists()
    assert loads(pickle.dumps([1, "a"]), allow_pickle=True) == [1, "a"]
    with pytest.raises(DataError, match="cannot be read"):
        loads(b"\x80\x04\xff", allow_pickle=True)
    with pytest.raises(DataError, match=r"begins with b'\\xc1MX1', got 3 bytes"):
        loads(b"\xdc\x00\x01", allow_pickle=True)


# Files


def images(n: int = 30) -> df.DataFlow:
    return df.DataFromList([[np.full((8, 8, 3), i, np.uint8), i, b"\0" * i] for i in range(n)], shuffle=False)


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_round_trip(serializer: Any, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "data"
    serializer.save(images(), path)
    loaded = serializer.load(path, shuffle=False)
    assert len(loaded) == 30
    assert same(list(loaded), list(images()))
    assert same(list(loaded), list(images()))
    shuffled = serializer.load(path, shuffle=True)
    orders = [[dp[1] for dp in shuffled] for _ in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(30))
    assert orders[0] != orders[1]
    assert os.listdir(path.parent) == ["data"]


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(VALUES, max_size=4))
def test_round_trip_of_anything(values: list[Any]) -> None:
    dps = [[v] for v in values]
    with tempfile.TemporaryDirectory() as folder:
        for i, serializer in enumerate(SERIALIZERS):
            path = os.path.join(folder, str(i))
            serializer.save(df.DataFromList(dps, shuffle=False), path)  # type: ignore[attr-defined]
            assert same(list(serializer.load(path, shuffle=False)), dps)  # type: ignore[attr-defined]


def test_default_order(tmp_path: Path) -> None:
    for serializer, shuffles in zip(SERIALIZERS, [True, True, False], strict=True):
        path = tmp_path / serializer.__name__
        serializer.save(images(), path)  # type: ignore[attr-defined]
        loaded = serializer.load(path)  # type: ignore[attr-defined]
        assert ([dp[1] for dp in loaded] != list(range(30))) == shuffles


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_save_replaces_nothing_and_leaves_nothing_behind(serializer: Any, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="exists already"):
        serializer.save(images(), path)
    assert path.read_bytes() == b"precious"
    path.unlink()

    def breaks() -> Iterator[Any]:
        yield [1]
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        serializer.save(df.DataFromGenerator(breaks), path)
    with pytest.raises(DataError, match="cannot write a value of type set"):
        serializer.save(df.DataFromList([[{1}]]), path)
    with pytest.raises(UsageError, match="expected a DataFlow to save, got list"):
        serializer.save([[1]], path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_files_that_are_not_there_or_damaged(serializer: Any, tmp_path: Path) -> None:
    path = tmp_path / "data"
    with pytest.raises(MoxFileNotExistsException, match="no such file"):
        serializer.load(path)
    serializer.save(images(), path)
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        if serializer is df.TFRecordSerializer and size == 0:
            continue  # an empty file is one without records
        with pytest.raises(DataError, match="data"):
            list(serializer.load(path))
    path.write_bytes(b"something else" * 1000)
    with pytest.raises(DataError, match="data"):
        list(serializer.load(path))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("saved")
    for serializer in SERIALIZERS[1:]:
        serializer.save(images(6), folder / serializer.__name__)  # type: ignore[attr-defined]
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_changed_bytes_are_told_or_do_not_matter(saved: dict[str, bytes], data: st.DataObject) -> None:
    for serializer in SERIALIZERS[1:]:
        damaged = bytearray(saved[serializer.__name__])
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] ^= data.draw(st.integers(1, 255))
        with tempfile.NamedTemporaryFile() as file:
            file.write(damaged)
            file.flush()
            try:
                loaded = list(serializer.load(file.name, shuffle=False))  # type: ignore[attr-defined]
            except DataError as error:
                told = error.message
                assert file.name in told
            else:
                # Such as the time in a zip file's directory.
                assert serializer is df.NumpySerializer
                assert same(loaded, list(images(6)))


def test_damaged_hdf5_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    df.HDF5Serializer.save(images(), path, ["a", "b", "c"])
    whole = path.read_bytes()
    # The heap that holds the bytes begins with its signature.
    path.write_bytes(whole.replace(b"GCOL", b"XXXX"))
    for in_memory in (0, 1 << 30):
        with pytest.raises(DataError, match=r"x\.h5 is damaged"):
            list(df.HDF5Data(path, ["a", "c"], in_memory_bytes=in_memory))


def test_damaged_records_are_named(tmp_path: Path) -> None:
    path = tmp_path / "data"
    write_records(path, [dumps([1]), b"rubbish"])
    flow = df.TFRecordSerializer.load(path)
    with pytest.raises(DataError, match=r"data: record 1 at byte \d+: expected a record that begins with"):
        list(flow)
    assert list(df.TFRecordSerializer.load(path, size=1)) == [[1]]
    with pytest.raises(DataError, match="has 2 records, not 3"):
        df.TFRecordSerializer.load(path, size=3)
    with pytest.raises(UsageError, match="give the size by name"):
        df.TFRecordSerializer.load(path, 2)  # type: ignore[arg-type]


def write_as_tensorpack(path: Path, **items: bytes) -> None:
    import lmdb

    env = lmdb.open(str(path), subdir=False, lock=False)
    with env.begin(write=True) as transaction:
        for key, value in items.items():
            transaction.put(key.encode(), value)
    env.close()


def test_files_of_tensorpack(tmp_path: Path) -> None:
    path = tmp_path / "tp.lmdb"
    items = {f"{i:08d}": pickle.dumps([i, np.arange(i)]) for i in range(3)}
    write_as_tensorpack(path, **items, __keys__=pickle.dumps([k.encode() for k in items]))
    with pytest.raises(DataError, match=r"tp.lmdb: key b'00000000': a record is a pickle"):
        list(df.LMDBSerializer.load(path, shuffle=False))
    loaded = df.LMDBSerializer.load(path, shuffle=False, allow_pickle=True)
    assert [dp[1].tolist() for dp in loaded] == [[], [0], [0, 1]]
    records = tmp_path / "tp.tfrecord"
    write_records(records, [pickle.dumps([i]) for i in range(3)])
    assert list(df.TFRecordSerializer.load(records, allow_pickle=True)) == [[0], [1], [2]]
    with pytest.raises(DataError, match="pickle"):
        list(df.TFRecordSerializer.load(records))


def test_lmdb_of_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "x.lmdb"
    write_as_tensorpack(path, b=b"2", a=b"1")
    with pytest.raises(DataError, match=r"no entry __keys__(.|\n)*LMDBData"):
        df.LMDBSerializer.load(path)
    assert list(df.LMDBData(path, shuffle=False)) == [[b"a", b"1"], [b"b", b"2"]]
    assert list(df.LMDBData(path, shuffle=False, keys=[b"b"])) == [[b"b", b"2"]]
    decoded = df.LMDBDataDecoder(df.LMDBData(path, shuffle=False), lambda k, v: [k, int(v)] if k != b"a" else None)
    assert list(decoded) == [[b"b", 2]]
    with pytest.raises(DataError, match=r"has no key b'[01]'"):
        list(df.LMDBData(path, keys="{}"))


def test_lmdb_in_a_folder_and_growing(tmp_path: Path) -> None:
    big = df.FakeData([(1 << 20,)], 40, random=False, dtype="uint8", domain=(0, 255))
    df.LMDBSerializer.save(big, tmp_path, write_frequency=7)
    assert os.listdir(tmp_path) == ["data.mdb"]
    loaded = df.LMDBSerializer.load(tmp_path)
    assert [dp[0].shape for dp in loaded] == [(1 << 20,)] * 40
    assert len(df.LMDBDataPoint(df.LMDBData(tmp_path, shuffle=False))) == 40
    with pytest.raises(FileExistsError):
        df.LMDBSerializer.save(big, tmp_path)


def test_lmdb_is_read_by_several_flows_and_by_forks(tmp_path: Path) -> None:
    path = tmp_path / "x"
    df.LMDBSerializer.save(images(), path)
    flows = [df.LMDBSerializer.load(path, shuffle=False) for _ in range(2)]
    pairs = list(zip(*flows, strict=True))
    assert all(same(a, b) for a, b in pairs)
    opened = iter(flows[0])
    next(opened)
    with pytest.raises(RuntimeError, match="not reentrant"):
        next(iter(flows[0]))
    code = (
        "import sys, os, moxserve.dataflow as df\n"
        "flow = df.LMDBSerializer.load(sys.argv[1]); flow.reset_state(); next(iter(flow))\n"
        "pid = os.fork()\n"
        "os.waitpid(pid, 0) if pid else flow.reset_state()\n"
        "print(len(list(flow)), flush=True)\n"
        "if not pid: os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["30", "30"]


def test_lmdb_that_was_replaced_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x"
    df.LMDBSerializer.save(images(3), path)
    old = df.LMDBSerializer.load(path)
    list(old)
    path.rename(tmp_path / "old")
    df.LMDBSerializer.save(images(5), path)
    with pytest.raises(DataError, match="was replaced while this process reads it"):
        df.LMDBSerializer.load(path)
    del old
    assert len(list(df.LMDBSerializer.load(path))) == 5


def test_kill_while_saving_leaves_no_file(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal, moxserve.dataflow as df\n"
        "def source():\n"
        "    for i in range(1000):\n"
        "        if i == 500: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield [i]\n"
        "getattr(df, sys.argv[1]).save(df.DataFromGenerator(source), sys.argv[2])\n"
    )
    for serializer in SERIALIZERS:
        path = tmp_path / serializer.__name__
        done = subprocess.run([sys.executable, "-c", code, serializer.__name__, path], timeout=60, check=False)
        assert done.returncode == -9
        assert not path.exists()


def test_numpy_files_hold_no_pickle(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    df.NumpySerializer.save(images(), path)
    with np.load(path, allow_pickle=False) as found:
        assert set(found.files) == {"format", "offsets", "data"}
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(DataError, match=r"was not written by NumpySerializer; it has a(.|\n)*NpzData"):
        df.NumpySerializer.load(tmp_path / "other.npz")
    np.savez(tmp_path / "objects.npz", buffer=np.array([[1, "a"]], object))
    with pytest.raises(DataError, match="no npz file of plain arrays"):
        df.NumpySerializer.load(tmp_path / "objects.npz")
    np.savez(tmp_path / "wrong.npz", format=np.array("moxserve datapoints 1"), offsets=[0, 9], data=np.zeros(3, "u1"))
    with pytest.raises(DataError, match="offsets do not fit"):
        df.NumpySerializer.load(tmp_path / "wrong.npz")


def test_tfrecords_are_tfrecords(tmp_path: Path) -> None:
    path = tmp_path / "x.tfrecord"
    df.TFRecordSerializer.save(images(4), path)
    assert [loads(record)[1] for record in read_records(path)] == [0, 1, 2, 3]


# HDF5, npz, SVMlight


def test_hdf5_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    dps = [
        {
            "image": np.full((4, 4), i % 256, np.uint8),
            "n": i * 2**40,
            "x": i / 7,
            "b": b"\0" * i,
            "s": "ä" * i,
            "t": i > 5,
        }
        for i in range(600)
    ]
    names = ["image", "n", "x", "b", "s"]
    df.HDF5Serializer.save(df.DataFromList(dps, shuffle=False), path, names)
    for in_memory in (1 << 30, 0):
        flow = df.HDF5Data(path, names, shuffle=False, in_memory_bytes=in_memory)
        loaded = list(flow)
        assert len(flow) == len(loaded) == 600
        for got, dp in zip(loaded, dps, strict=True):
            assert np.array_equal(got[0], dp["image"])
            assert [got[1], got[2], got[3], got[4].decode()] == [dp[k] for k in names[1:]]
    assert loaded[0][0].dtype == np.uint8
    orders = [[dp[0] for dp in df.HDF5Serializer.load(path, ["n"])] for _ in range(2)]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def test_hdf5_keeps_truth_values(tmp_path: Path) -> None:
    df.HDF5Serializer.save(df.DataFromList([[True], [False]], shuffle=False), tmp_path / "x.h5", ["a"])
    assert [dp[0].dtype for dp in df.HDF5Serializer.load(tmp_path / "x.h5", ["a"])] == [np.bool_] * 2


def test_flows_over_files_can_be_pickled(tmp_path: Path) -> None:
    flows: list[df.DataFlow] = []
    for serializer in SERIALIZERS:
        serializer.save(images(), tmp_path / serializer.__name__)  # type: ignore[attr-defined]
        flows.append(serializer.load(tmp_path / serializer.__name__, shuffle=True))  # type: ignore[attr-defined]
    df.HDF5Serializer.save(images(), tmp_path / "h5", ["a", "b", "c"])
    flows += [df.HDF5Data(tmp_path / "h5", ["a", "b"], in_memory_bytes=n) for n in (0, 1 << 30)]
    for flow in flows:
        next(iter(flow))
        copied = pickle.loads(pickle.dumps(flow))
        assert sorted(dp[1] for dp in copied) == list(range(30))


def test_hdf5_errors(tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "x.h5"
    ragged = df.DataFromList([[np.zeros(2)]] * 256 + [[np.zeros(3)]], shuffle=False)
    with pytest.raises(DataError, match=r"'a' began with float64 \(2,\), and goes on with float64 \(3,\)"):
        df.HDF5Serializer.save(ragged, path, ["a"])
    with pytest.raises(DataError, match="has 2 data paths; a datapoint has 1 components"):
        df.HDF5Serializer.save(ragged, path, ["a", "b"])
    with pytest.raises(UsageError, match="each once"):
        df.HDF5Serializer.save(ragged, path, ["a", "a"])
    with pytest.raises(DataError, match="cannot batch"):
        df.HDF5Serializer.save(df.DataFromList([[None]]), path, ["a"])
    assert os.listdir(tmp_path) == []
    df.HDF5Serializer.save(df.DataFromList([], shuffle=False), path, ["a"])
    assert list(df.HDF5Serializer.load(path, ["a"])) == []
    with pytest.raises(FileExistsError):
        df.HDF5Serializer.save(ragged, path, ["a"])
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["g/a"], file["b"] = np.zeros(3), np.zeros(4)
    with pytest.raises(DataError, match=r"different numbers of rows: {'g/a': 3, 'b': 4}"):
        df.HDF5Data(tmp_path / "y.h5", ["g/a", "b"])
    with pytest.raises(DataError, match=r"no data set 'g' with rows; it has b, g/a"):
        df.HDF5Data(tmp_path / "y.h5", ["g"])
    whole = (tmp_path / "y.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="no HDF5 file, or is cut off"):
        df.HDF5Data(tmp_path / "cut.h5", ["b"])
    with pytest.raises(MoxFileNotExistsException):
        df.HDF5Data(tmp_path / "no.h5", ["b"])


def test_npz_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, images=np.arange(12).reshape(3, 2, 2), labels=np.array([5, 6, 7]), odd=np.zeros(2))
    flow = df.NpzData(path, ["labels", "images"], shuffle=False)
    assert [(int(n), image.sum()) for n, image in flow] == [(5, 6), (6, 22), (7, 38)]
    assert len(flow) == 3
    assert sorted(dp["labels"] for dp in df.NpzData(path, ["labels"], as_dict=True)) == [5, 6, 7]
    with pytest.raises(DataError, match=r"same number of rows, got .*'odd': 2"):
        df.NpzData(path)
    with pytest.raises(DataError, match="no array 'image'; it has images, labels, odd"):
        df.NpzData(path, ["image"])
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(DataError, match="npy file"):
        df.NpzData(tmp_path / "x.npy")


def test_svmlight(tmp_path: Path) -> None:
    path = tmp_path / "x.svm"
    path.write_text("1 1:0.5 3:2\n-1 2:1\n")
    flow = df.SVMLightData(path, shuffle=False)
    assert [(x.tolist(), y) for x, y in flow] == [([0.5, 0, 2], 1), ([0, 1, 0], -1)]
    assert len(flow) == 2
    path.write_text("not a number\n")
    with pytest.raises(DataError, match="no SVMlight file"):
        df.SVMLightData(path)


@pytest.mark.parametrize("module", ["lmdb", "h5py"])
def test_missing_package_is_told(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    save: Any = df.LMDBSerializer.save if module == "lmdb" else df.HDF5Serializer.save
    with pytest.raises(MoxserveError, match=rf"needs {module}(.|\n)*moxserve\[dataflow\]"):
        save(images(1), tmp_path / "x", *([["a", "b", "c"]] if module == "h5py" else []))
