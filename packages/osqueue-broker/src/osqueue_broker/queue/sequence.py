"""A long list of texts that is cheap to encode again after a few of them have changed.

The items are kept in blocks. A block remembers its joined text until one of its items changes, so a commit
joins the texts of some hundred blocks, not of every job.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, Protocol, TypeVar

BLOCK_SIZE: Final = 256
"""Items in a full block: large enough that blocks are few, small enough that joining one again is cheap."""


class Item(Protocol):
    """What a sequence holds."""

    id: str
    block: Block | None

    def text(self) -> bytes:
        """The item as JSON text."""
        ...


I = TypeVar("I", bound=Item)  # noqa: E741  # the item


class Block:
    """Some neighbouring items, and their joined text while it is known."""

    __slots__ = ("_text", "items", "number", "room")

    def __init__(self, number: int) -> None:
        self.number = number
        self.items: dict[str, Item] = {}
        self.room = BLOCK_SIZE
        self._text: bytes | None = None

    def forget_text(self) -> None:
        """Have the text made again before it is next used."""
        self._text = None

    def text(self) -> bytes:
        """Return the items' texts, joined by commas."""
        if self._text is None:
            self._text = b",".join([item.text() for item in self.items.values()])
        return self._text


class Sequence(Generic[I]):
    """Items in the order in which they were appended, found by their ids."""

    def __init__(self) -> None:
        self._blocks: dict[int, Block] = {}
        self._last = Block(0)
        self._items: dict[str, I] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, id: str) -> bool:
        return id in self._items

    def __iter__(self) -> Iterator[I]:
        """Yield the items in order."""
        for block in self._blocks.values():
            for id in block.items:
                yield self._items[id]

    def get(self, id: str) -> I | None:
        """Return the item with this id."""
        return self._items.get(id)

    def append(self, item: I) -> None:
        """Add an item at the end. Its id must be new."""
        block = self._last
        if not block.room or block.number not in self._blocks:
            block = self._last = Block(block.number + 1)
            self._blocks[block.number] = block
        block.room -= 1
        block.items[item.id] = item
        block.forget_text()
        item.block = block
        self._items[item.id] = item

    def remove(self, item: I) -> None:
        """Take an item out."""
        block = self._changed(item)
        del self._items[item.id]
        del block.items[item.id]
        item.block = None
        if not block.items:
            del self._blocks[block.number]

    def touch(self, item: I) -> None:
        """Say that the item's text has changed."""
        self._changed(item)

    def text(self) -> list[bytes]:
        """Return all items as the pieces of a JSON array, for one join with what stands around it."""
        pieces = [b"["]
        for block in self._blocks.values():
            pieces += (block.text(), b",")
        pieces[-1] = b"]" if len(pieces) > 1 else b"[]"
        return pieces

    def _changed(self, item: I) -> Block:
        block = item.block
        assert block is not None, f"{item.id} is in no sequence"
        block.forget_text()
        return block
