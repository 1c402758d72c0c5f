"""torch's DataLoader with worker processes: `input_torch.py WORKERS BATCH PATHS_FILE`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from input_numpy import augment, load
from input_worker import serve
from torch.utils.data import DataLoader, Dataset

torch.set_num_threads(1)


class Images(Dataset):  # type: ignore[misc]
    """Augmented images, `[224, 224, 3]` of uint8 or, normalised, float32."""

    def __init__(self, paths: list[str], floating: bool) -> None:
        self.paths, self.floating = paths, floating

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = augment(load(self.paths[index]))
        if self.floating:
            return torch.from_numpy((image.astype(np.float32) - 127.5) / 127.5)
        return torch.from_numpy(image)


def _batches(paths: list[str], workers: int, batch: int, floating: bool) -> Iterator[torch.Tensor]:
    loader = DataLoader(
        Images(paths, floating), batch, shuffle=True, num_workers=workers, persistent_workers=True, drop_last=True
    )
    while True:
        yield from loader


if __name__ == "__main__":
    workers, batch, listed = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]).read_text().splitlines()
    serve({
        "uint8": lambda: _batches(listed, workers, batch, floating=False),
        "float32": lambda: _batches(listed, workers, batch, floating=True),
    })  # fmt: skip
