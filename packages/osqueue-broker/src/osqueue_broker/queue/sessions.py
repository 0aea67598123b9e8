"""What was answered to requests with an id, so that a repeat gets the first answer: one record for each client session.

What is remembered of an answer is only what it cannot be made again without: the id of a job that was submitted, the
id and the lease token of one that was claimed, of anything else that it was done. It is forgotten as soon as the client
says that it waits for it no more, so that its size follows the requests in flight, not their rate.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final

import msgspec
from msgspec import Struct

from .bits import bits_in_text, text_of_bits
from .sequence import Block, Sequence

LONGEST_AGE_MS: Final = 60_000
"""How long after it was sent first a request may be repeated."""

KEPT_FOR: Final = 120.0
"""Seconds for which a session is kept after its last request: twice as long as a request may be repeated."""

ANSWERS_LIMIT: Final = 10_000
"""Answers that are remembered of one session."""

SESSIONS_LIMIT: Final = 50_000
"""Sessions that are remembered."""

BYTES_LIMIT: Final = 4 * 1024 * 1024
"""Bytes of the document that all of this may take: about 40,000 sessions that wait for one answer each."""

_FRAME: Final = 96
"""Bytes that a session adds to the document without its name and its answers, and the list's own name."""

_encoder = msgspec.json.Encoder()


class Remembered:
    """An answer that was given.

    `job_id` is that of the job submitted, or of the first of so many that were `added`; `token` is that of the leases,
    by which their jobs are found. Of a batch that ends jobs, `refused` are the bits of those that were refused, the
    first one's bit the lowest.
    """

    __slots__ = ("added", "job_id", "number", "refused", "text", "token")

    def __init__(
        self,
        number: int,
        job_id: str | None = None,
        token: str | None = None,
        *,
        added: int | None = None,
        refused: int = 0,
    ) -> None:
        self.number = number
        self.job_id = job_id
        self.token = token
        self.added = added
        self.refused = refused
        rest = added if added is not None else text_of_bits(refused) or None
        row: list[object] = [number, job_id, token, rest]
        while row[-1] is None:
            row.pop()
        self.text = _encoder.encode(row)


class AnswerText(Struct, array_like=True):
    """An answer in the document: an array of the request's number and of what is remembered, as far as there is any.

    `rest` is how many jobs of a batch were added, or which entries were refused: their bits in base64.
    """

    number: int
    job_id: str | None = None
    token: str | None = None
    rest: int | str | None = None

    def remembered(self) -> Remembered:
        """Return the answer."""
        match self.rest:
            case int(added):
                return Remembered(self.number, self.job_id, self.token, added=added)
            case str(refused):
                return Remembered(self.number, self.job_id, self.token, refused=bits_in_text(refused))
        return Remembered(self.number, self.job_id, self.token)


class SessionText(Struct, rename="camel"):
    """A session in the document."""

    id: str
    lowest: int
    answers: tuple[AnswerText, ...] = ()


class ClientSession:
    """The answers to one client that it may still ask for again: none to a request numbered below `lowest`."""

    __slots__ = ("_numbers", "_text", "answers", "block", "id", "last_used", "lowest", "position", "size")

    def __init__(self, id: str, lowest: int, last_used: float, position: int) -> None:
        self.id = id
        self.position = position
        self.lowest = lowest
        self.last_used = last_used
        self.answers: dict[int, Remembered] = {}
        self.size = _FRAME + len(_encoder.encode(id))
        self.block: Block | None = None
        self._numbers: list[int] = []
        self._text: bytes | None = None

    def text(self) -> bytes:
        """Return the session as JSON text."""
        if self._text is None:
            answers = b",".join([answer.text for answer in self.answers.values()])
            id = _encoder.encode(self.id)
            self._text = b'{"id":%b,"lowest":%d,"answers":[%b]}' % (id, self.lowest, answers)
        return self._text

    def add(self, number: int, answer: Remembered) -> None:
        """Remember an answer."""
        self.answers[number] = answer
        heappush(self._numbers, number)
        self.size += len(answer.text) + 1
        self._text = None

    def forget(self, number: int) -> None:
        """Remember an answer no more."""
        self.size -= len(self.answers.pop(number).text) + 1
        self._text = None

    def raise_lowest(self, lowest: int) -> None:
        """Forget the answers to requests that are numbered below `lowest`."""
        self.lowest = lowest
        self._text = None
        numbers = self._numbers
        while numbers and numbers[0] < lowest:
            number = heappop(numbers)
            if number in self.answers:  # else it was forgotten before, or it stands here twice
                self.forget(number)

    def load(self, known: Iterable[AnswerText]) -> None:
        """Take in the answers that stand in a document."""
        for each in known:
            answer = each.remembered()
            self.answers[each.number] = answer
            self.size += len(answer.text) + 1
        self._numbers = list(self.answers)
        heapify(self._numbers)


class Sessions:
    """The sessions of all clients that have sent a request with an id of late. Each method is O(1) or O(log n).

    Nothing here owes a commit by itself: what is remembered was a change, and what is forgotten needs no hurry.
    """

    def __init__(self) -> None:
        self.bytes = 0
        """How many bytes they add to the document at most."""
        self._positions = count()
        self._sessions: Sequence[ClientSession] = Sequence()
        self._by_use: OrderedDict[str, ClientSession] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, id: str) -> ClientSession | None:
        """Return the session with this id."""
        return self._sessions.get(id)

    def begin(self, id: str, lowest: int, served: float) -> ClientSession:
        """Return a new session."""
        session = ClientSession(id, lowest, served, next(self._positions))
        self._take_in(session)
        return session

    def use(self, session: ClientSession, lowest: int, served: float) -> None:
        """Note a request of a session, and which of its requests it still waits for."""
        if served != session.last_used:
            session.last_used = served
            self._by_use.move_to_end(session.id)
        if lowest > session.lowest:
            before = session.size
            session.raise_lowest(lowest)
            self._changed(session, before)

    def remember(self, session: ClientSession, number: int, answer: Remembered) -> None:
        """Remember the answer to a request."""
        before = session.size
        session.add(number, answer)
        self._changed(session, before)

    def forget(self, session: ClientSession, number: int) -> None:
        """Remember the answer to a request no more."""
        before = session.size
        session.forget(number)
        self._changed(session, before)

    def drop_idle(self, served: float) -> None:
        """Drop the sessions that have sent nothing for `KEPT_FOR` seconds."""
        while self._by_use:
            session = next(iter(self._by_use.values()))
            if session.last_used + KEPT_FOR > served:
                return
            del self._by_use[session.id]
            self._sessions.remove(session)
            self.bytes -= session.size

    def load(self, known: SessionText, served: float) -> None:
        """Take in a session of the document; it is kept as if it had sent a request just now."""
        session = ClientSession(known.id, known.lowest, served, next(self._positions))
        session.load(known.answers)
        self._take_in(session)

    def text(self) -> list[bytes]:
        """Return all sessions as the pieces of a JSON array."""
        return self._sessions.text()

    def _take_in(self, session: ClientSession) -> None:
        self._sessions.add(session)
        self._by_use[session.id] = session
        self.bytes += session.size

    def _changed(self, session: ClientSession, size_before: int) -> None:
        self.bytes += session.size - size_before
        self._sessions.touch(session)
