"""Cutting a folder of classes into parts, such as one to train with and one to evaluate with."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from moxserve.errors import DataError, UsageError
from moxserve.file import atomic_write, publish_directory, staging_directory, sweep
from moxserve.file.labels import LABELS_FILE, format_labels
from moxserve.tensorflow.datasets.raw.metadata import ImageClassificationRawMetadata
from moxserve.tensorflow.datasets.raw.storage import is_remote, join, plain_url, read_file
from moxserve.tensorflow.executor.env import tf1

__all__ = ["split_image_classification_dataset"]

_TOLERANCE = 1e-6
_COPIES_AT_ONCE = 16


def split_image_classification_dataset(
    split_spec: Mapping[str, float] | None = None,
    src_dir: str = "",
    dst_dir: str = "",
    overwrite: bool = False,
    *,
    seed: int = 0,
) -> dict[str, int]:
    """Copy a folder of classes into one folder a part, each with all class folders and a labels.txt.

        src_dir/<label>/*.jpg   ->   dst_dir/train/<label>/*.jpg, dst_dir/train/labels.txt, dst_dir/eval/...

    Each image goes into exactly one part. The parts have their share of every class; a class with at least as many
    images as there are parts is in all of them. The same files, fractions and seed give the same parts on every
    machine. `dst_dir` appears at once when all is copied, or not at all. Source: MoXing's `raw_dataset` module.

    Args:
        split_spec: fraction of each part by its name, more than 0, together 1; default nine tenths `train`, one `eval`.
        src_dir: as `ImageClassificationRawMetadata` takes it; may be in a bucket.
        dst_dir: a local folder, outside of `src_dir`.
        overwrite: replace `dst_dir` when it is there and not empty.
        seed: of the choice.

    Returns:
        The number of images of each part.

    Raises:
        UsageError: the fractions are no split, or `dst_dir` is in a bucket, inside of `src_dir` or around it.
        DataError: `src_dir` breaks the rules, or `dst_dir` is there and not to be replaced.
    """
    spec = {"train": 0.9, "eval": 0.1} if split_spec is None else dict(split_spec)
    _check_spec(spec)
    source, target = plain_url(src_dir), plain_url(dst_dir)
    _check_target(source, target, overwrite)
    metadata = ImageClassificationRawMetadata(source)
    parts = _assign(metadata, spec, seed)
    parent = os.path.dirname(os.path.abspath(target))
    sweep(parent)
    with staging_directory(parent) as staged:
        for part, names in parts.items():
            _write_part(metadata, os.path.join(staged, part), names)
        _replace(staged, target, parent, overwrite)
    counts = {part: len(names) for part, names in parts.items()}
    tf1.logging.info("%s: %s images written to %s", source, counts, target)
    return counts


def _check_spec(spec: Mapping[str, float]) -> None:
    names = [name for name in spec if not name or name in (".", "..") or "/" in name or name.startswith(".")]
    if names or not spec:
        raise UsageError(f"split_spec={dict(spec)}: expected names of folders, such as {{'train': 0.9, 'eval': 0.1}}")
    if any(not fraction > 0 for fraction in spec.values()) or abs(math.fsum(spec.values()) - 1) > _TOLERANCE:
        raise UsageError(
            f"split_spec={dict(spec)}: expected fractions that are more than 0 and together 1,"
            f" got {math.fsum(spec.values()):.6g}",
            hint="images that no part shall have can be a part of their own",
        )


def _check_target(source: str, target: str, overwrite: bool) -> None:
    if not source or not target:
        raise UsageError("split_image_classification_dataset needs src_dir and dst_dir")
    if is_remote(target):
        raise UsageError(f"dst_dir={target!r}: expected a local folder", hint="split to a local folder, then upload it")
    if not is_remote(source):
        a, b = os.path.realpath(source), os.path.realpath(target)
        if a == b or a.startswith(b + os.sep) or b.startswith(a + os.sep):
            raise UsageError(f"dst_dir={target!r} must lie outside of src_dir={source!r}, and not around it")
    if os.path.lexists(target) and not os.path.isdir(target):
        raise DataError(f"dst_dir {target!r} is a file")
    if not overwrite and os.path.isdir(target) and os.listdir(target):
        raise DataError(f"dst_dir {target!r} is there already", hint="overwrite=True replaces it")


def _assign(metadata: ImageClassificationRawMetadata, spec: Mapping[str, float], seed: int) -> dict[str, list[str]]:
    by_class: dict[str, list[str]] = {label: [] for label in metadata.labels_list}
    for name, label in zip(metadata.samples.names, metadata.samples.texts, strict=True):
        by_class[label].append(name)
    parts: dict[str, list[str]] = {part: [] for part in spec}
    for number, names in enumerate(by_class.values()):
        order = np.random.default_rng([seed, number]).permutation(len(names))
        ends = np.cumsum(_counts(len(names), list(spec.values())))
        for part, rows in zip(parts, np.split(order, ends[:-1]), strict=True):
            parts[part] += [names[row] for row in sorted(rows)]
    return parts


def _counts(total: int, fractions: Sequence[float]) -> list[int]:
    """Share out a class: largest remainders first, and none empty if it has enough images."""
    exact = [total * fraction for fraction in fractions]
    counts = [math.floor(value + _TOLERANCE) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    if total >= len(counts):
        for i, count in enumerate(counts):
            if not count:
                counts[counts.index(max(counts))] -= 1
                counts[i] = 1
    return counts


def _write_part(metadata: ImageClassificationRawMetadata, folder: str, names: Sequence[str]) -> None:
    for label in metadata.labels_list:
        os.makedirs(os.path.join(folder, label))

    def copy(name: str) -> None:
        source, target = join(metadata.base_dir, name), os.path.join(folder, name)
        if is_remote(source):
            with open(target, "wb") as f:
                f.write(read_file(source))
        else:
            shutil.copy2(source, target)

    try:
        with ThreadPoolExecutor(_COPIES_AT_ONCE) as pool:
            for _ in pool.map(copy, names):
                pass
    except OSError as error:
        raise DataError(f"an image cannot be copied: {error}") from error
    atomic_write(os.path.join(folder, LABELS_FILE), format_labels(metadata.labels_list))


def _replace(staged: str, target: str, parent: str, overwrite: bool) -> None:
    """Publish; what is there is moved away first, and comes back if publishing fails."""
    if not (overwrite and os.path.isdir(target)):
        publish_directory(staged, target)
        return
    with staging_directory(parent) as trash:
        old = os.path.join(trash, "old")
        os.rename(target, old)
        try:
            publish_directory(staged, target)
        except BaseException:
            os.rename(old, target)
            raise
