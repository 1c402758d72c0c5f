"""The examples of docs/dataflow.md run, and print what their comments say."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "dataflow.md").read_text()
# The part on workers has tests of its own.
TEXT = re.sub(r"^## Parallel$.*?(?=^## )", "", PAGE, flags=re.DOTALL | re.MULTILINE)
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def expected(code: str) -> list[str]:
    """What the comments at the ends of `print` lines announce."""
    found = []
    for line in code.splitlines():
        call, _, comment = line.strip().partition("  #")
        if call.startswith("print(") and comment:
            text = comment.strip()
            found.append(
                re.sub(r"^(lists instead of arrays): |: the same in each run$|: two flows never .*$", "", text)
            )
    return found


@pytest.mark.parametrize("code", EXAMPLES, ids=[re.sub(r"\W+", "_", e.splitlines()[-1])[:30] for e in EXAMPLES])
def test_example(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i in range(8):
        image = np.random.default_rng(i).integers(0, 256, (30 + i, 40, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / f"{i}.jpg"), image)
    exec(compile(code, "docs/dataflow.md", "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out
    for line in expected(code):
        assert line in printed


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 8
    assert sum(map(len, map(expected, EXAMPLES))) >= 8


def test_every_component_is_in_the_table() -> None:
    import moxserve.dataflow as df
    from moxserve.dataflow.base import DataFlow

    def is_flow(name: str) -> bool:
        found = getattr(df, name)
        return isinstance(found, type) and issubclass(found, DataFlow)

    ours = {"base", "batch", "common", "mix", "raw", "image", "format", "speed"}
    names = [n for m in ours for n in df._MODULES[m] if is_flow(n)]
    assert [n for n in names if f"`{n}" not in PAGE] == []
