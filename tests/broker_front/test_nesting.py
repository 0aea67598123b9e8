"""How deep a text is nested: the guard in front of every JSON reader."""

from __future__ import annotations

import json
import time
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osqueue_client.wire_json import MAX_NESTING, nesting

VALUES = st.recursive(
    st.none() | st.text(alphabet='[]{}"\\é,:n') | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='[{"\\'), inner, max_size=4),
    max_leaves=30,
)


def depth_of(value: object) -> int:
    match value:
        case list():
            return 1 + max(map(depth_of, value), default=0)
        case dict():
            return 1 + max(map(depth_of, value.values()), default=0)
    return 0


@given(VALUES, st.booleans())
def test_a_valid_text_is_as_deep_as_its_value(value: object, ascii: bool) -> None:
    assert nesting(json.dumps(value, ensure_ascii=ascii).encode()) == depth_of(value)


@given(st.text(alphabet="[]{}", max_size=60))
def test_a_broken_text_is_taken_for_at_least_as_deep_as_a_reader_would_go(text: str) -> None:
    steps = {"[": 1, "{": 1, "]": -1, "}": -1}
    assert nesting(text.encode()) >= max(accumulate(steps[bracket] for bracket in text), default=0)


@pytest.mark.parametrize("depth", [1, 16, 17, MAX_NESTING, MAX_NESTING + 1, 100_000])
def test_depths_around_the_limit(depth: int) -> None:
    for open, close in ((b"[", b"]"), (b'{"a":', b"}"), (b'[{"[":', b"}]")):
        levels = depth * (2 if b"{" in open and b"[{" in open else 1)
        assert nesting(open * depth + b"1" + close * depth) == min(levels, max(MAX_NESTING + 1, 0))
        assert nesting(open * depth) >= min(levels, MAX_NESTING + 1)


@pytest.mark.parametrize(
    "item", [b"[],", b'{"a":1},', b'{"a":"[\\\\\\"{"},', b'"', b"[", b"{", b'\\"', b'[[{"a":[1]}]],']
)
def test_a_large_text_is_measured_in_little_time(item: bytes) -> None:
    text = b"[" + item * (2**20 // len(item))
    started = time.process_time()
    nesting(text)
    assert time.process_time() - started < 0.1
