"""docs/transforms.md says what the catalogue says: MOXSERVE_WRITE_DOCS=1 writes it anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moxserve.export.transforms import DEFAULT_TRANSFORMS, GRAPPLER_PASSES, TRANSFORMS, Argument, TransformInfo
from moxserve.export.transforms.catalogue import ALIASES, GONE
from moxserve.export.transforms.grappler import REFUSED_PASSES


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def overview() -> list[str]:
    lines = ["| Transform | What it does | Run by | Changes |", "|---|---|---|---|"]
    for name, info in sorted(TRANSFORMS.items()):
        changes = f"{info.changes}, at most {info.limit:g}" if info.limit else info.changes
        lines.append(f"| [`{name}`](#{name}) | {_cell(info.summary)} | {info.by} | {changes} |")
    return lines


def _argument(argument: Argument) -> str:
    facts: list[str] = [argument.kind]
    if argument.repeatable:
        facts.append("may repeat")
    facts.append("required" if argument.required else f"default `{argument.default}`" if argument.default else "")
    return f"- `{argument.name}` ({', '.join(fact for fact in facts if fact)}): {argument.help}."


def _section(name: str, info: TransformInfo) -> list[str]:
    lines = ["", f"### {name}", "", info.summary]
    if info.arguments:
        lines += ["", *(_argument(argument) for argument in info.arguments)]
    if info.note:
        lines += ["", info.note]
    return lines


def details() -> list[str]:
    return [line for name, info in sorted(TRANSFORMS.items()) for line in _section(name, info)][1:]


def names() -> list[str]:
    lines = [f"- `{alias}`: another spelling of `{name}`." for alias, name in sorted(ALIASES.items())]
    return lines + [f"- `{name}` is gone: {why}." for name, why in sorted(GONE.items())]


def passes() -> list[str]:
    lines = ["| Pass | |", "|---|---|"]
    lines += [f"| `{name}` | {what} |" for name, what in GRAPPLER_PASSES.items()]
    return lines + [f"| `{name}` | refused: it {why} |" for name, why in REFUSED_PASSES.items()]


PARTS = {
    "overview": overview(),
    "details": details(),
    "names": names(),
    "grappler": passes(),
    "default": ["```", *DEFAULT_TRANSFORMS.replace(") ", ")\n").split("\n"), "```"],
}


@pytest.mark.parametrize("part", PARTS)
def test_docs_say_what_the_catalogue_says(part: str, repo_root: Path) -> None:
    page = repo_root / "docs" / "transforms.md"
    text = page.read_text(encoding="utf-8")
    start, end = f"<!-- {part}: from the catalogue -->\n", f"\n<!-- end of {part} -->"
    before, _, rest = text.partition(start)
    found, _, after = rest.partition(end)
    wanted = "\n".join(PARTS[part])
    if os.environ.get("MOXSERVE_WRITE_DOCS") and rest:
        page.write_text(f"{before}{start}{wanted}{end}{after}", encoding="utf-8")
        return
    assert found == wanted


def test_every_transform_is_described() -> None:
    for name, info in TRANSFORMS.items():
        assert info.summary.endswith("."), name
        assert info.changes
        assert all(argument.help for argument in info.arguments)
