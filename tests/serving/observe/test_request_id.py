from __future__ import annotations

import pytest

from moxserve.serving.observe import new_request_id, valid_request_id


@pytest.mark.parametrize("given", ["a", "9f86d081-884c-7d65", "x" * 128, 'quote"\\'])
def test_ids_that_are_taken(given) -> None:
    assert valid_request_id(given) == given
    assert valid_request_id(given.encode()) == given


@pytest.mark.parametrize("given", ["", "x" * 129, "two words", "line\nbreak", "a\n", "\x00", "\x7f", "ä", "\u2028"])
def test_ids_that_count_as_none(given) -> None:
    assert valid_request_id(given) == ""
    assert valid_request_id(given.encode()) == ""


def test_made_ids_differ_and_are_valid() -> None:
    made = {new_request_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(valid_request_id(one) == one and len(one) == 16 for one in made)
