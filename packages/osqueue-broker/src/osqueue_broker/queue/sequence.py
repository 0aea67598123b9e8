"""A long list of texts that is cheap to encode again after a few of them have changed.

The items are kept in blocks. A block remembers its joined text until one of its items changes, so a commit
joins the texts of some hundred blocks, not of every job.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from operator import attrgetter
from typing import Final, Generic, Protocol, TypeVar

from .order import with_place

BLOCK_SIZE: Final = 64
"""Items in a full block: large enough that blocks are few, small enough that joining one again is cheap."""

_position = attrgetter("position")
_first = attrgetter("first")


class Item(Protocol):
    """What a sequence holds. Its position is its place among the others; it never changes."""

    id: str
    position: int
    block: Block | None

    def text(self) -> bytes:
        """The item as JSON text."""
        ...


I = TypeVar("I", bound=Item)  # noqa: E741  # the item


class Block:
    """Some neighbouring items, and their joined text while it is known.

    None of its items stands before `first`, and none was added behind `last`. It may be in disorder until it is read.
    """

    __slots__ = ("_is_ordered", "_text", "first", "items", "last")

    def __init__(self, position: int) -> None:
        self.first = position
        self.last = position
        self.items: dict[str, Item] = {}
        self._is_ordered = True
        self._text: bytes | None = None

    @property
    def is_full(self) -> bool:
        return len(self.items) >= BLOCK_SIZE

    def add(self, item: Item) -> None:
        """Add an item that belongs between the neighbouring blocks."""
        position = item.position
        if position >= self.last:
            self.last = position
        else:
            self._is_ordered = False
            self.first = min(self.first, position)
        self.items[item.id] = item
        item.block = self
        self._text = None

    def forget_text(self) -> None:
        """Have the text made again before it is next used."""
        self._text = None

    def ordered(self) -> dict[str, Item]:
        """Return the items in order."""
        if not self._is_ordered:
            self.items = {item.id: item for item in sorted(self.items.values(), key=_position)}
            self._is_ordered = True
        return self.items

    def text(self, *, with_order: bool) -> bytes:
        """Return the items' texts, joined by commas."""
        if self._text is None:
            items = self.ordered().values()
            if with_order:
                self._text = b",".join([with_place(item.text(), item.position) for item in items])
            else:
                self._text = b",".join([item.text() for item in items])
        return self._text

    def split(self) -> Block:
        """Move the second half of the items to a block of their own, and return that."""
        items = list(self.ordered().values())
        half = items[len(items) // 2 :]
        other = Block(half[0].position)
        for item in half:
            del self.items[item.id]
            other.add(item)
        self.last = items[len(items) // 2 - 1].position
        self._text = None
        return other


class Sequence(Generic[I]):
    """Items in the order of their positions, found by their ids.

    While it is `numbered`, each item's text gets a field `order` with its position, so that the order holds against
    items that stand elsewhere.
    """

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._items: dict[str, I] = {}
        self._is_numbered = False

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, id: str) -> bool:
        return id in self._items

    def __iter__(self) -> Iterator[I]:
        """Yield the items in order."""
        for block in self._blocks:
            for id in block.ordered():
                yield self._items[id]

    def after(self, position: int) -> Iterator[I]:
        """Yield the items behind a position, in order."""
        start = max(bisect_right(self._blocks, position, key=_first) - 1, 0)
        for block in self._blocks[start:]:
            for id, item in block.ordered().items():
                if item.position > position:
                    yield self._items[id]

    def get(self, id: str) -> I | None:
        """Return the item with this id."""
        return self._items.get(id)

    def add(self, item: I) -> None:
        """Add an item in its place. Its id must be new."""
        self._items[item.id] = item
        blocks = self._blocks
        if blocks and item.position >= blocks[-1].last:
            block = blocks[-1]
            if block.is_full:
                block = Block(item.position)
                blocks.append(block)
        elif blocks:
            block = self._block_between(item.position)
        else:
            block = Block(item.position)
            blocks.append(block)
        block.add(item)

    def remove(self, item: I) -> None:
        """Take an item out."""
        block = self._changed(item)
        del self._items[item.id]
        del block.items[item.id]
        item.block = None
        if not block.items:
            self._blocks.remove(block)

    def touch(self, item: I) -> None:
        """Say that the item's text has changed."""
        self._changed(item)

    def number(self, is_numbered: bool) -> None:
        """Begin or cease to write each item's position."""
        if is_numbered != self._is_numbered:
            self._is_numbered = is_numbered
            for block in self._blocks:
                block.forget_text()

    def text(self) -> list[bytes]:
        """Return all items as the pieces of a JSON array, for one join with what stands around it."""
        pieces = [b"["]
        for block in self._blocks:
            pieces += (block.text(with_order=self._is_numbered), b",")
        pieces[-1] = b"]" if len(pieces) > 1 else b"[]"
        return pieces

    def _block_between(self, position: int) -> Block:
        place = bisect_right(self._blocks, position, key=_first) - 1
        if place < 0:
            place = 0
            if len(self._blocks[0].items) > BLOCK_SIZE // 4:  # else it stays small
                self._blocks.insert(0, Block(position))
        block = self._blocks[place]
        if not block.is_full:
            return block
        other = Block(position) if position > block.last else block.split()
        self._blocks.insert(place + 1, other)
        return other if position >= other.first else block

    def _changed(self, item: I) -> Block:
        block = item.block
        assert block is not None, f"{item.id} is in no sequence"
        block.forget_text()
        return block
