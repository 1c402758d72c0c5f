"""The page as HTML: complete, well formed, and nothing that a user named gets out of its place."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

from moxserve.serving.rest.page.figures import Latency, ModelFigures
from moxserve.serving.rest.page.render import ModelView, PageView, VersionView, render
from moxserve.serving.rest.page.sample import Sample

VOID = {"meta", "link", "input", "br", "img"}


@dataclass
class Page(HTMLParser):
    """Elements with their attributes, and the text of the page."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.elements if t == tag and wanted.items() <= a.items()]


def parsed(*models: ModelView, **figures: ModelFigures) -> Page:
    page = Page()
    page.feed(render(PageView("1.2.3", "host", 3725.0, models, figures, "/metrics")))
    assert page.open == []
    return page


EVIL = "<img src=x onerror=alert(1)>\"'`&</textarea></script>\x00"


def test_names_of_users_are_text_wherever_they_stand() -> None:
    version = VersionView(1, "AVAILABLE", EVIL, [EVIL], EVIL, EVIL)
    model = ModelView(EVIL, [version], 1, {EVIL: EVIL}, {EVIL: Sample(EVIL, EVIL)})
    page = parsed(model, **{EVIL: ModelFigures(1, {EVIL: 2}, Latency(1, 1, 1, 1))})
    harmless = parsed(ModelView("m", [VersionView(1, "AVAILABLE", "e", ["l"], "p", "v")], 1, {"s": "t"},
                                {"s": Sample("x", "y")}), m=ModelFigures(1, {"E": 2}, Latency(1, 1, 1, 1)))  # fmt: skip
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in harmless.elements]
    assert [set(a) for _, a in page.elements] == [set(a) for _, a in harmless.elements]
    assert page.of("img") == []
    assert page.of("article")[0]["data-model"] == EVIL
    assert "onerror" not in {name for _, attributes in page.elements for name in attributes}


def test_nothing_comes_from_elsewhere_and_nothing_is_inline() -> None:
    page = parsed(ModelView("m", [VersionView(1, "AVAILABLE")], 1, {"s": "t"}, {"s": Sample("{}")}))
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name != "style"
            if name in ("src", "href"):
                assert value is not None
                assert "//" not in value
    assert [a["src"] for a in page.of("script")] == ["ui/page.js"]
    assert page.of("style") == []


def test_what_a_reader_sees_without_a_script() -> None:
    page = parsed(
        ModelView("half", [VersionView(4, "END", "NOT_FOUND: no file"), VersionView(3, "AVAILABLE", "", ["stable"],
                                                                                     "openvino", "openvino_int8")],
                  3, {"serving_default": "serving_default(x: float32[?]) -> (y: float32[?])"},
                  {"serving_default": Sample('{"instances": [0.5]}')}),
        ModelView("new", [VersionView(1, "LOADING")]),
        ModelView("empty"),
        half=ModelFigures(1200, {"UNAVAILABLE": 2}, Latency(1200, 0.31, 12.34, 1234.5), Latency(1200, 0.1, 2, 3)),
    )  # fmt: skip
    for text in (
        "moxserve", "up 1 h 2 min", "1 / 3", "1,200", "serves version 3", "OpenVINO int8", "stable",
        "NOT_FOUND: no file", "LOADING", "no version serves", "2 UNAVAILABLE", "0.31", "12.3", "1,234",
        "No version was found yet",
        "serving_default(x: float32[?]) -> (y: float32[?])", "needs JavaScript",
    ):  # fmt: skip
        assert text in page.text, text
    assert "/metrics" not in [a["href"] for a in page.of("a")]  # relative, so that a proxy may put a path before it
    assert {"v1/models", "metrics", "v1/models/half", "v1/models/half/metadata"} <= {a["href"] for a in page.of("a")}


def test_accessible_by_its_structure() -> None:
    page = parsed(ModelView("m", [VersionView(1, "AVAILABLE")], 1, {"s": "t"}, {"s": Sample("{}")}))
    assert page.of("html", lang="en")
    assert len(page.of("h1")) == 1
    assert [a.get("scope") for a in page.of("th")].count(None) == 0
    labels, fields = len(page.of("label")), len(page.of("input")) + len(page.of("select")) + len(page.of("textarea"))
    assert labels == fields
    assert len(page.of("caption")) == len(page.of("table"))


def test_a_server_without_models() -> None:
    assert "No model is configured" in parsed().text


def test_paths_of_odd_names_are_quoted() -> None:
    page = parsed(ModelView("a b/ü?#", [VersionView(1, "AVAILABLE")], 1, {"s": "t"}, {"s": Sample("{}")}))
    assert page.of("form")[0]["data-path"] == "v1/models/a%20b%2F%C3%BC%3F%23:predict"
