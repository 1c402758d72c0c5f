"""The page of a real server, by HTTP and in a browser."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from moxserve.client import Client
from moxserve.serving.main import Server, ServerOptions
from moxserve.serving.reload import ReloadOptions
from moxserve.serving.rest.options import RestOptions

EVIL = "<b onclick=alert(1)>&'\""


def config(*entries: tuple[str, Path, str]) -> str:
    listed = " ".join(
        f'config {{ name: {json.dumps(name)} base_path: "{base}" model_platform: "tensorflow" {more} }}'
        for name, base, more in entries
    )
    return f"model_config_list {{ {listed} }}"


@pytest.fixture(scope="module")
def server(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    folder = shared_dir / "testdata" / "tfserving"
    two, matrix = folder / "saved_model_half_plus_two_2_versions", folder / "matrix_half_plus_two"
    path = tmp_path_factory.mktemp("page") / "models.config"
    both = 'model_version_policy { all {} } version_labels { key: "stable" value: 123 }'
    first = config(("half", two, both), ("matrix", matrix, ""), (EVIL, two, ""))
    path.write_text(first)
    options = ServerOptions(
        config=ReloadOptions(str(path), allow_unavailable=True), rest_address="127.0.0.1:0",
        rest=RestOptions(metrics_path="/monitoring/metrics"),
    )  # fmt: skip
    with Server(options) as running:
        url = f"http://127.0.0.1:{running.rest_port}"
        with httpx2.Client(base_url=url) as http, Client(f"127.0.0.1:{running.grpc_port}") as client:
            for _ in range(20):
                http.post("/v1/models/half:predict", json={"instances": [1.0]})
            http.post("/v1/models/half:predict", json={"instances": ["x"]})
            yield SimpleNamespace(url=url, http=http, client=client, first=first, two=two)


def test_the_page_without_a_script(server) -> None:
    answer = server.http.get("/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    for text in (
        "half", "serves version 124", "TensorFlow", "stable", "AVAILABLE", "matrix", "p99", "1 INVALID_ARGUMENT",
        "&lt;b onclick=alert(1)&gt;&amp;&#x27;&quot;", "serving_default(x: float32[", 'href="monitoring/metrics"',
    ):  # fmt: skip
        assert text in answer.text, text
    assert "<b onclick" not in answer.text
    half = answer.text.partition('<form data-path="v1/models/half:predict">')[2]
    assert half.index('<option value="serving_default"') < half.index("<option", half.index("<option") + 1)


def test_its_files_and_nothing_else(server) -> None:
    for path, kind in (("/ui/page.css", "text/css"), ("/ui/page.js", "text/javascript")):
        answer = server.http.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (200, f"{kind}; charset=utf-8")
        assert answer.headers["x-content-type-options"] == "nosniff"
    for path in ("/ui/", "/ui/routes.py", "/ui/../main.py", "/ui/%2e%2e/routes.py", "/index.html"):
        assert server.http.get(path).status_code == 404
    assert server.http.post("/").status_code == 404


def test_looking_at_the_page_is_no_request_for_a_model(server) -> None:
    before = server.http.get("/monitoring/metrics").text
    server.http.get("/")
    count = [line for line in before.splitlines() if "request_count{" in line]
    after = server.http.get("/monitoring/metrics").text
    assert [line for line in after.splitlines() if "request_count{" in line] == count


def test_the_page_can_be_turned_off(shared_dir) -> None:
    base = str(shared_dir / "testdata" / "tfserving" / "saved_model_half_plus_two_cpu")
    with Server(ServerOptions("half", base, rest_address="127.0.0.1:0", rest=RestOptions(page=False))) as running:
        assert httpx2.get(f"http://127.0.0.1:{running.rest_port}/").status_code == 404


# In a browser


def card(name: str) -> str:
    return f"article[data-model={json.dumps(name)}]"


def test_a_sample_request_is_sent_with_a_click(server, browser) -> None:
    browser.open(server.url)
    browser.wait("!document.querySelector('form button').disabled")
    form = f"{card('half')} form"
    browser.run(f"document.querySelector('{form} textarea').value = '{{\"instances\": [1.0, 2.0]}}'")
    browser.click(f"{form} button")
    browser.wait(f"!document.querySelector('{form} .answer').hidden")
    assert json.loads(browser.run(f"document.querySelector('{form} .answer').textContent")) == {
        "predictions": [2.5, 3.0]
    }
    assert browser.run(f"document.querySelector('{form} .took').textContent").startswith("HTTP 200 in ")
    assert browser.problems == []


def test_every_prefilled_sample_is_answered(server, browser) -> None:
    browser.open(server.url)
    browser.wait("!document.querySelector('form button').disabled")
    told = browser.run(
        """(async () => {
          const told = [];
          for (const form of document.forms) for (const option of form.elements.signature) {
            form.elements.signature.value = option.value;
            form.elements.signature.dispatchEvent(new Event("change"));
            if (!form.elements.body.value) continue;
            await send(form);
            told.push([form.dataset.path, option.value, form.querySelector(".took").textContent]);
          }
          return told;
        })()"""
    )
    answered = {(path, signature): text for path, signature, text in told}
    assert answered[("v1/models/half:predict", "serving_default")].startswith("HTTP 200")
    assert answered[("v1/models/matrix:predict", "serving_default")].startswith("HTTP 200")
    assert answered[("v1/models/%3Cb%20onclick%3Dalert%281%29%3E%26%27%22:predict", "serving_default")].startswith(
        "HTTP 200"
    )


def test_a_request_that_is_wrong_says_so(server, browser) -> None:
    browser.open(server.url)
    browser.wait("!document.querySelector('form button').disabled")
    form = f"{card('half')} form"
    browser.run(f"document.querySelector('{form} textarea').value = '{{'")
    browser.click(f"{form} button")
    browser.wait(f"document.querySelector('{form} .took').textContent.startsWith('HTTP 400')")
    assert "JSON Parse error" in browser.run(f"document.querySelector('{form} .answer').textContent")


def test_names_of_users_run_nothing(server, browser) -> None:
    browser.open(server.url)
    assert browser.run("document.querySelectorAll('b').length") == 0
    assert browser.run("[...document.querySelectorAll('article')].map(a => a.dataset.model)")[2] == EVIL
    assert browser.run("document.querySelectorAll('[onclick]').length") == 0


@pytest.mark.slow
def test_the_page_keeps_itself_up_to_date(server, browser) -> None:
    browser.open(server.url)
    browser.wait("!document.querySelector('form button').disabled")
    half = card("half")
    browser.run(f"document.querySelector('{half} textarea').value = 'half written'")
    before = browser.run(f"document.querySelector('{half} [data-rate]').dataset.count")
    for _ in range(30):
        server.http.post("/v1/models/half:predict", json={"instances": [1.0]})
    browser.wait(f"Number(document.querySelector('{half} [data-rate]').dataset.count) >= {int(before) + 30}")
    browser.wait("document.querySelector('[data-rate-label]').textContent === 'Requests a second'")
    server.client.reload(config(("half", server.two, "model_version_policy { all {} }"), ("late", server.two, "")))
    try:
        browser.wait("[...document.querySelectorAll('article')].map(a => a.dataset.model).join() === 'half,late'")
        assert browser.run(f"document.querySelector('{half} textarea').value") == "half written"
        browser.wait(f"!document.querySelector('{card('late')} button').disabled")
        browser.click(f"{card('late')} button")
        browser.wait(f"document.querySelector('{card('late')} .took').textContent.startsWith('HTTP 200')")
    finally:
        server.client.reload(server.first)
    assert browser.problems == []


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_it_fits_the_window(server, browser, width, height) -> None:
    browser.resize(width, height)
    browser.open(server.url)
    assert browser.run("document.documentElement.scrollWidth") <= width
    picture = browser.screenshot()
    assert picture.startswith(b"\x89PNG")
    if folder := os.environ.get("MOXSERVE_TEST_PICTURES"):
        Path(folder, f"page-{width}.png").write_bytes(picture)


def test_text_has_enough_contrast_in_both_schemes(server, browser) -> None:
    """4.5 : 1, as WCAG asks of text: of every element that holds text, against what lies behind it."""
    script = """(() => {
      const parse = (c) => c.match(/[\\d.]+/g).map(Number);
      const light = ([r, g, b]) => { const f = [r, g, b].map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 :
        ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2]; };
      const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
        if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
      const poor = [];
      for (const e of document.querySelectorAll("body *")) {
        if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) || !e.offsetParent) continue;
        if (["SCRIPT", "NOSCRIPT", "OPTION"].includes(e.tagName)) continue;
        const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) poor.push([e.tagName, e.className, e.textContent.slice(0, 30), ratio]);
      }
      return poor;
    })()"""
    for scheme in ("light", "dark"):
        browser.scheme(scheme)
        browser.open(server.url)
        browser.wait("!document.querySelector('form button').disabled")
        poor: Any = browser.run(script)
        assert poor == [], scheme
