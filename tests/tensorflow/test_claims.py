"""One training at a time into a directory of a bucket."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import moxserve.tensorflow as mox
from moxserve import file
from moxserve.errors import UsageError
from moxserve.tensorflow.executor import claims
from moxserve.tensorflow.executor.claims import CLAIM_FILE, Claim, ClaimLostError, claimed

Train = Callable[..., mox.RunResult]


@pytest.fixture
def url(store: Any) -> str:
    return f"{store.base}/run"


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits: how long somebody would have."""
    pauses: list[float] = []
    monkeypatch.setattr(claims, "_sleep", pauses.append)
    return pauses


def of_another_machine(url: str, renewals: int = 1) -> None:
    """Leave the claim of a process that cannot be seen from here."""
    held = {
        "host": "far",
        "pid": 7,
        "since": "2026-01-01T00:00:00+00:00",
        "token": f"{file.TEMP_PREFIX}7-1-0123abcd-0",
        "renewals": renewals,
    }
    file.write(f"{url}/{CLAIM_FILE}", json.dumps(held))


def test_a_claim_is_there_while_it_is_held(url: str) -> None:
    with claimed(url):
        held = json.loads(file.read(f"{url}/{CLAIM_FILE}"))
        assert {"host", "pid", "since", "token"} <= set(held)
        with pytest.raises(UsageError, match="another run of this process is training into it"), claimed(url):
            pytest.fail("two hold it")
    assert not file.exists(f"{url}/{CLAIM_FILE}")
    with pytest.raises(UsageError, match=r"there is no bucket 's3://mistyped'"), claimed("s3://mistyped/run"):
        pytest.fail("there is nothing to hold")


def test_who_renews_its_claim_is_left_alone(url: str, monkeypatch: pytest.MonkeyPatch, console: Any) -> None:
    of_another_machine(url)
    monkeypatch.setattr(claims, "_sleep", lambda _: of_another_machine(url, renewals=2))
    with pytest.raises(UsageError, match=r"process 7 on far \(since .*\) is training into it") as refused, claimed(url):
        pytest.fail("it is held")
    assert f"remove {url}/{CLAIM_FILE}" in str(refused.value.hint)
    assert console.text.count("waiting up to 45 s") == 1


def test_a_claim_that_nobody_renews_lapses_and_one_that_is_released_is_free(
    url: str, monkeypatch: pytest.MonkeyPatch, console: Any
) -> None:
    of_another_machine(url)
    monkeypatch.setattr(claims, "_LAPSE_S", 0.05)
    with claimed(url) as claim:
        claim.renew()
    assert "is taken over from process 7 on far" in console.text
    of_another_machine(url)
    monkeypatch.setattr(claims, "_LAPSE_S", 45.0)
    monkeypatch.setattr(claims, "_sleep", lambda _: file.remove(f"{url}/{CLAIM_FILE}"))
    with claimed(url):
        assert file.exists(f"{url}/{CLAIM_FILE}")


@pytest.mark.slow
def test_how_old_a_claim_is_the_store_tells(url: str, monkeypatch: pytest.MonkeyPatch, patient: list[float]) -> None:
    of_another_machine(url)
    threading.Event().wait(2.1)  # the store's clock tells whole seconds, rounded up or down
    monkeypatch.setattr(claims, "_LAPSE_S", 1.0)
    with claimed(url):
        assert patient == []


def test_a_claim_is_renewed_and_its_loss_is_noticed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_RENEW_S", 0.01)
    with claimed(url) as claim:
        first = file.read(f"{url}/{CLAIM_FILE}")
        until(lambda: file.read(f"{url}/{CLAIM_FILE}") != first)
        of_another_machine(url)
        until(lambda: claim.is_lost)
        with pytest.raises(ClaimLostError, match=r"process 7 on far \(since .*\) has taken it over"):
            claim.check()
        with pytest.raises(ClaimLostError):
            claim.renew()
    assert json.loads(file.read(f"{url}/{CLAIM_FILE}"))["host"] == "far"


def test_nothing_is_left_of_a_claim_whenever_it_is_released(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_RENEW_S", 0.0)
    for _ in range(3):
        with claimed(url) as claim:
            claim.renew()
        claim.renew()  # who comes too late
        claim._keeper.join(120)
        assert not file.exists(f"{url}/{CLAIM_FILE}")


def test_a_claim_that_was_removed_is_made_again(url: str) -> None:
    with claimed(url) as claim:
        file.remove(f"{url}/{CLAIM_FILE}")
        claim.renew()
        assert file.exists(f"{url}/{CLAIM_FILE}")


def test_a_store_that_is_away_costs_no_claim(
    url: str, store: Any, monkeypatch: pytest.MonkeyPatch, console: Any
) -> None:
    monkeypatch.setattr(claims, "_RENEW_S", 0.01)
    monkeypatch.setattr(claims, "_RETRY_S", 0.01)
    refused = [("403 Forbidden", [("Content-Type", "application/xml")], b"<Error><Code>AccessDenied</Code></Error>")]
    with claimed(url) as claim:
        store.before = lambda *_: refused[0] if refused else None
        count = len(store.calls)
        until(lambda: len(store.calls) > count + 3)
        refused.clear()
        claim.renew()
        assert not claim.is_lost
    assert console.text.count("cannot be renewed") == 1
    assert not file.exists(f"{url}/{CLAIM_FILE}")


def test_a_store_without_conditional_writes_will_do(url: str, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_RENEW_S", 3600.0)  # each writing is counted
    unknown = (
        "501 Not Implemented",
        [("Content-Type", "application/xml")],
        b"<Error><Code>NotImplemented</Code></Error>",
    )
    puts = []

    def lacks(method: str, path: str, query: str) -> Any:
        if method != "PUT":
            return None
        puts.append(path)
        return unknown if len(puts) % 2 else None  # with a condition, then without

    store.before = lacks
    with claimed(url) as claim:
        claim.renew()
        assert len(puts) == 4
        with pytest.raises(UsageError, match="another run of this process"), claimed(url):
            pytest.fail("two hold it")
        store.before = None
        of_another_machine(url)
        store.before = lacks
        with pytest.raises(ClaimLostError):
            claim.renew()
        assert len(puts) == 4
    assert json.loads(file.read(f"{url}/{CLAIM_FILE}"))["host"] == "far"


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "{", '{"token": 1}'])
def test_a_claim_that_cannot_be_read_counts_as_one(url: str, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write(f"{url}/{CLAIM_FILE}", content)
    monkeypatch.setattr(claims, "_sleep", lambda _: file.write(f"{url}/{CLAIM_FILE}", f"{content} "))
    with pytest.raises(UsageError, match="another process is training into it"):
        Claim(url).take()


@pytest.mark.slow
def test_a_training_that_was_taken_over_writes_nothing_any_more(train: Train, url: str, console: Any) -> None:
    train(log_dir=url, max_number_of_steps=2)
    before = file.list_directory(url, recursive=True)

    def stolen(step: int) -> bool:
        if step == 1:
            of_another_machine(url)
        return False

    with pytest.raises(ClaimLostError, match=r"process 7 on far \(since .*\) has taken it over"):
        train(log_dir=url, max_number_of_steps=100_000, save_model_steps=2, fetch_strategy_fn=stolen)
    assert sorted({*before, CLAIM_FILE, ".moxserve-training"}) == file.list_directory(url, recursive=True)
    assert "is lost" not in console.text
    file.remove(f"{url}/{CLAIM_FILE}")
    with pytest.raises(ClaimLostError):
        train(log_dir=url, max_number_of_steps=4, fetch_strategy_fn=lambda step: of_another_machine(url) or False)


@pytest.mark.slow
def test_who_does_not_train_needs_no_claim(train: Train, url: str) -> None:
    train(log_dir=url, max_number_of_steps=2)
    of_another_machine(url)
    assert train(run_mode=mox.ModeKeys.EVAL, log_dir=url, max_number_of_steps=1).global_step == 2


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
