"""The list of texts: in order and found by id, whatever is added, changed and taken out, against a sorted list."""

from __future__ import annotations

import json
import random

import pytest

from osqueue_broker.queue.sequence import BLOCK_SIZE, Block, Sequence


class Item:
    """A text at a place."""

    def __init__(self, id: str, position: int, word: str = "") -> None:
        self.id = id
        self.position = position
        self.word = word
        self.block: Block | None = None

    def text(self) -> bytes:
        return b'{"id":"%b","word":"%b"}' % (self.id.encode(), self.word.encode())


def told(sequence: Sequence[Item]) -> bytes:
    """The array as it would be written."""
    return b"".join(sequence.text())


def expected(items: list[Item], *, is_numbered: bool) -> list[dict[str, object]]:
    fields: list[dict[str, object]] = []
    for item in sorted(items, key=lambda item: item.position):
        order = {"order": item.position} if is_numbered else {}
        fields.append({"id": item.id, "word": item.word, **order})
    return fields


@pytest.mark.parametrize("seed", range(12))
def test_it_is_the_sorted_list_after_any_changes(seed: int) -> None:
    print(f"seed {seed}")  # pytest shows it with a failure
    chance = random.Random(seed)
    sequence: Sequence[Item] = Sequence()
    items: dict[str, Item] = {}
    free = list(range(6 * BLOCK_SIZE))
    chance.shuffle(free)
    if seed % 2:  # as a queue grows: mostly at the end
        free = sorted(free[: 3 * BLOCK_SIZE], reverse=True) + free[3 * BLOCK_SIZE :]
    is_numbered = False
    for step in range(8 * BLOCK_SIZE):
        what = chance.random()
        if what < 0.6 and free:
            position = free.pop()
            item = Item(f"{chance.getrandbits(40):x}-{position}", position)
            sequence.add(item)
            items[item.id] = item
        elif what < 0.8 and items:
            item = items.pop(chance.choice(list(items)))
            sequence.remove(item)
            assert item.block is None
            free.insert(chance.randrange(len(free) + 1), item.position)
        elif what < 0.9 and items:
            item = items[chance.choice(list(items))]
            item.word = f"w{step}"
            sequence.touch(item)
        elif what < 0.92:
            is_numbered = not is_numbered
            sequence.number(is_numbered)
        if step % 64 == 0:
            check(sequence, items, chance, is_numbered=is_numbered)
    check(sequence, items, chance, is_numbered=is_numbered)
    for item in list(items.values()):
        sequence.remove(item)
    assert told(sequence) == b"[]"
    assert len(sequence) == 0
    assert list(sequence) == []


def check(
    sequence: Sequence[Item], items: dict[str, Item], chance: random.Random, *, is_numbered: bool
) -> None:
    ordered = sorted(items.values(), key=lambda item: item.position)
    assert len(sequence) == len(items)
    assert json.loads(told(sequence)) == expected(ordered, is_numbered=is_numbered)
    assert list(sequence) == ordered
    after = chance.randrange(-1, 6 * BLOCK_SIZE)
    assert list(sequence.after(after)) == [item for item in ordered if item.position > after]
    for item in chance.sample(ordered, min(len(ordered), 5)):
        assert item.id in sequence
        assert sequence.get(item.id) is item
    assert "never" not in sequence
    assert sequence.get("never") is None


def test_items_added_at_the_end_fill_their_blocks() -> None:
    sequence: Sequence[Item] = Sequence()
    for position in range(4 * BLOCK_SIZE):
        sequence.add(Item(str(position), position))
    blocks = {id(item.block) for item in sequence}
    assert len(blocks) == 4


def test_an_unchanged_block_keeps_its_text() -> None:
    sequence: Sequence[Item] = Sequence()
    for position in range(2 * BLOCK_SIZE):
        sequence.add(Item(str(position), position))
    first, last = sequence.get("0"), sequence.get(str(2 * BLOCK_SIZE - 1))
    assert first is not None
    assert last is not None
    before = sequence.text()
    last.word = "x"
    sequence.touch(last)
    after = sequence.text()
    assert after[1] is before[1]
    assert b'"word":"x"' in after[3]
