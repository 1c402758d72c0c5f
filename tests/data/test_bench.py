"""Measuring a data set: what is measured is what the reader gives; times themselves are nobody's test."""

from __future__ import annotations

from pathlib import Path

import pytest

from moxserve.data.bench import BenchOptions, run_bench
from moxserve.errors import DataError, UsageError
from moxserve.protocol.examples import write_examples


@pytest.mark.slow
@pytest.mark.parametrize("part", ["images", "tfrecord"])
@pytest.mark.parametrize(("augment", "dtype"), [(None, "uint8"), ("lenet", "float32")])
def test_it_measures_what_the_reader_gives(part: str, augment: str | None, dtype: str, digits_dir: Path) -> None:
    told: list[int] = []
    found = run_bench(
        str(digits_dir / part),
        BenchOptions(batch_size=8, image_size=28, steps=5, augment=augment, progress=told.append),
    )
    assert Path(found.path).name.startswith("train")
    assert (found.images, found.shape, found.dtype) == (40, (8, 28, 28, 3), dtype)
    assert found.windows == (augment is not None)
    assert told == [1, 2, 3, 4, 5]
    assert min(found.images_per_s, found.images_per_cpu_s, found.cores_busy, found.read_ms, found.decode_ms) > 0
    assert found.rest_ms <= found.total_ms
    assert found.total_ms == pytest.approx(1e3 / found.images_per_cpu_s)


def test_what_cannot_be_measured_says_so(digits_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images with labels"):
        run_bench(str(digits_dir / "idx"), BenchOptions())
    for row, name in (({"x": 1}, "image/encoded"), ({"image/encoded": b"x"}, "image/class/label")):
        write_examples(tmp_path / "t.tfrecord", [row])
        with pytest.raises(DataError, match=f"a record has no {name}"):
            run_bench(str(tmp_path), BenchOptions())
    with pytest.raises(UsageError, match="steps=0"):
        run_bench(str(digits_dir / "images"), BenchOptions(steps=0))
    with pytest.raises(UsageError, match="resnet_v1_50"):
        run_bench(str(digits_dir / "images"), BenchOptions(augment="resnet_v1_5"))
    with pytest.raises(DataError, match="no such file"):
        run_bench(str(tmp_path / "absent"), BenchOptions())
