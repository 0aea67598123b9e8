"""A network between programs and brokers that loses, delays, doubles and cuts off."""

from __future__ import annotations

import asyncio
import json
import math
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from osqueue_broker.reaching import Reached
from osqueue_client import wire_json
from osqueue_client.errors import OsqueueError, TransportConnectionError, error_from_wire, wire_fields
from osqueue_client.models import Model
from osqueue_client.operations import Operation

from .history import Call, Delivery
from .loop import Node
from .world import World

Req = TypeVar("Req", bound=Model)
Res = TypeVar("Res", bound=Model)

CALL: ContextVar[Call] = ContextVar("CALL")
"""What the program wants, for the sake of which a transport is called."""

CONNECT_TIMEOUT = 5.0


class Service(Protocol):
    """What a broker serves from."""

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res: ...

    def undelivered(self, operation: Operation[Req, Res], request: Req, answer: Res, /) -> None: ...


@dataclass(slots=True)
class Listener:
    """A bound port: who listens, and what is under way there."""

    address: str
    node: Node
    service: Service
    under_way: dict[int, _Sent] = field(default_factory=dict)


Kind = Literal["answer", "error", "not_applied", "unknown"]
"""What comes back: an answer's text, an error's, or that there is no answer, with what that says of the outcome."""


@dataclass(slots=True)
class _Sent:
    """One request on its way, and where its answer goes."""

    operation: Operation[Any, Any]
    body: bytes
    delivery: Delivery
    answer: asyncio.Future[tuple[Kind, Any]]
    sender: str = ""
    serving: asyncio.Task[None] | None = None
    """At the broker, while it is served there."""
    is_cut_off: bool = False
    """Whether the broker's side knows that the connection is gone."""
    drops_answer: bool = False


class Network:
    """The listeners by address, and the links that are cut."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.listeners: dict[str, Listener] = {}
        self.cut: set[tuple[str, str]] = set()
        """Pairs of a process's name and an address that cannot reach each other."""
        self.on_their_way = 0
        """Requests that were sent and will still arrive."""
        self._numbers = 0

    def listen(self, address: str, node: Node, service: Service) -> Listener:
        """Bind a port."""
        listener = self.listeners[address] = Listener(address, node, service)
        self.world.history.ports.setdefault(address, []).append([self.world.loop.now, math.inf])
        return listener

    async def drain(self, listener: Listener, patience: float) -> None:
        """Take no more connections, and let those under way be answered, for so many seconds."""
        self.close(listener.address, listener.node)
        try:
            async with asyncio.timeout(patience):
                while listener.under_way:
                    await asyncio.sleep(0.005)
        except TimeoutError:
            for sent in listener.under_way.values():
                sent.is_cut_off = True
                self._tell(sent, "unknown", "the connection was closed")

    async def connect(self, node: Node, address: str) -> Reached:
        """Try to connect, as a standby does to the leader."""
        world = self.world
        await asyncio.sleep(world.latency(world.network_latency, world.network_rates))
        match self.reach(node.name, address):
            case "refused":
                return Reached.REFUSED
            case "reached":
                return Reached.YES
        await asyncio.sleep(CONNECT_TIMEOUT)
        return Reached.UNCLEAR

    def close(self, address: str, node: Node) -> None:
        """Take no more connections; what is under way is still answered."""
        listener = self.listeners.get(address)
        if listener is not None and listener.node is node:
            self._closed(address)

    def _closed(self, address: str) -> None:
        del self.listeners[address]
        self.world.history.ports[address][-1][1] = self.world.loop.now

    def killed(self, node: Node) -> None:
        """Let those who waited for a killed process hear of it, or not."""
        for address, listener in list(self.listeners.items()):
            if listener.node is node:
                self._closed(address)
                for sent in listener.under_way.values():
                    if self.world.chance(0.8):
                        self._tell(sent, "unknown", "the connection was reset")

    def client_killed(self, node: Node) -> None:
        """Let the brokers hear that a client's process has ended with all its connections."""
        for listener in self.listeners.values():
            for sent in listener.under_way.values():
                if sent.sender == node.name and self.world.chance(0.8):  # else its machine is gone, too
                    self.world.loop.after(self.world.network_latency, self.cut_off, sent)

    def cut_off(self, sent: _Sent) -> None:
        """Have the broker's side know that nobody waits for an answer any more, now or when it answers."""
        sent.is_cut_off = True
        if sent.serving is not None and self.world.chance(0.7):
            sent.serving.cancel()

    def _hang_up(self, listener: Listener) -> None:
        """At times have who waits for a job hang up, just when one comes."""
        if not self.world.chance(self.world.network_rates.lost_answer):
            return
        for sent in listener.under_way.values():
            if getattr(sent.delivery.request, "wait", None):
                delay = self.world.between(0, 4 * self.world.store_latency)
                sent.drops_answer = True
                self.world.loop.after(delay, self.cut_off, sent)
                self.world.loop.after(delay, _settle, sent, "unknown", "the connection was reset")

    def reach(self, sender: str, address: str) -> str:
        """Return what a connect meets: `refused`, `reached`, or `silent`."""
        if (sender, address) in self.cut:
            return "silent"
        listener = self.listeners.get(address)
        return "refused" if listener is None or listener.node.is_dead else "reached"

    def send(self, sender: str, address: str, sent: _Sent) -> None:
        """Put a request on its way."""
        world, rates = self.world, self.world.network_rates
        there = world.latency(world.network_latency, rates)
        match self.reach(sender, address):
            case "silent":
                world.loop.after(CONNECT_TIMEOUT, _settle, sent, "not_applied", "no connection in time")
                return
            case "refused":
                world.loop.after(there, _settle, sent, "not_applied", f"{address}: connection refused")
                return
        fate = self._fate()
        if fate != "fine":
            world.trace(sender, f"{sent.operation.name} to {address}: {fate}")
        match fate:
            case "lost request":
                if world.chance(0.5):
                    self._tell(sent, "unknown", "the connection was reset")
                return
            case "refused":
                world.loop.after(there, _settle, sent, "not_applied", "the connection could not be made")
                return
            case "lost answer":
                sent.drops_answer = True
                if world.chance(0.5):  # the client hears of it, the broker may
                    reset_at = there + world.between(0, 4 * world.store_latency)
                    world.loop.after(reset_at, _settle, sent, "unknown", "the connection was reset")
                    world.loop.after(reset_at + there, self.cut_off, sent)
            case "late":
                self._tell(sent, "unknown", "the connection was reset")
                there += world.between(0.5, 20)
                sent.drops_answer = True
                sent.is_cut_off = world.chance(0.5)
            case "doubled":
                self.on_their_way += 1
                world.loop.after(there + world.between(0, 2), self._arrive, address, _again(sent))
        self.on_their_way += 1
        world.loop.after(there, self._arrive, address, sent)

    def _fate(self) -> str:
        rates = self.world.network_rates
        if self.world.is_calm:
            return "fine"
        at = self.world.random.random()
        for fate, likelihood in (
            ("lost request", rates.lost_request),
            ("refused", rates.refused),
            ("lost answer", rates.lost_answer),
            ("late", rates.late),
            ("doubled", rates.doubled),
        ):
            at -= likelihood
            if at < 0:
                return fate
        return "fine"

    def _tell(self, sent: _Sent, kind: Kind, what: object) -> None:
        world = self.world
        world.loop.after(world.latency(world.network_latency, world.network_rates), _settle, sent, kind, what)

    def _arrive(self, address: str, sent: _Sent) -> None:
        self.on_their_way -= 1
        listener = self.listeners.get(address)
        if listener is None or listener.node.is_dead:
            self._tell(sent, "unknown", "the connection was reset")
            return
        if sent.operation.name in ("submitJob", "submitJobs") and not self.world.is_calm:
            self._hang_up(listener)
        self._numbers += 1
        number = self._numbers
        listener.under_way[number] = sent
        sent.serving = listener.node.spawn(self._serve(listener, number, sent), "serve")

    async def _serve(self, listener: Listener, number: int, sent: _Sent) -> None:
        """Be the broker's side of one request. The text of request and answer is what travels."""
        world, delivery, operation = self.world, sent.delivery, sent.operation
        delivery.arrived_at = world.loop.now
        delivery.broker, delivery.address = listener.node.name, listener.address
        world.history.deliveries.append(delivery)
        kind: Kind = "answer"
        text = b""
        answer: Model | None = None
        try:
            request = wire_json.require_job_id(operation, wire_json.decode_request(operation, sent.body))
            delivery.request = request
            answer = await listener.service.call(operation, request)
            text = wire_json.encode(answer)
        except OsqueueError as error:
            kind, text = "error", json.dumps(wire_fields(error)).encode()
            delivery.error = error
        except asyncio.CancelledError:
            delivery.hung_up_at = world.loop.now
            world.trace(listener.node.name, f"{operation.name} of {sent.sender}: hung up")
            listener.under_way.pop(number, None)
            raise
        finally:
            sent.serving = None
        delivery.answer, delivery.answered_at = answer, world.loop.now
        del listener.under_way[number]
        if sent.is_cut_off and answer is not None:
            if world.chance(0.6):  # that nobody takes it may show late
                await asyncio.sleep(world.between(0, 2.5 * world.history.heartbeat_timeout))
            delivery.undelivered_at = world.loop.now
            listener.service.undelivered(operation, delivery.request, answer)
        if not sent.drops_answer and not sent.is_cut_off:
            self._tell(sent, kind, text)


class SimTransport:
    """A client's transport to one broker."""

    def __init__(self, network: Network, node: Node, url: str) -> None:
        self._network = network
        self._node = node
        self._address = url.partition("://")[2]
        self._is_closed = False

    async def call(self, operation: Operation[Req, Res], request: Req, /) -> Res:
        """See `osqueue_client.transports.Transport`."""
        if self._is_closed:
            raise RuntimeError("a transport was used that had been given back")  # as httpx does
        loop = self._network.world.loop
        call = CALL.get()
        delivery = Delivery(call, operation.name, request, "", loop.now)
        call.deliveries.append(delivery)
        sent = _Sent(operation, wire_json.encode(request), delivery, loop.create_future(), self._node.name)
        self._network.send(self._node.name, self._address, sent)
        try:
            kind, what = await sent.answer
        except asyncio.CancelledError:
            delay = self._network.world.latency(
                self._network.world.network_latency, self._network.world.network_rates
            )
            loop.after(delay, self._network.cut_off, sent)
            raise
        if kind == "answer":
            return wire_json.decode_response(operation, what)
        if kind == "error":
            raise error_from_wire(json.loads(what), method=operation.name, status=503)
        raise TransportConnectionError(what, outcome=kind)

    async def aclose(self) -> None:
        """Take no more calls. Whoever closes it under one of them cuts that off."""
        self._is_closed = True


def _again(sent: _Sent) -> _Sent:
    """Return the same request as it arrives once more; nobody waits for that answer."""
    old = sent.delivery
    old.call.was_doubled = True
    delivery = Delivery(old.call, old.operation, old.request, "", old.sent_at)
    old.call.deliveries.append(delivery)
    return _Sent(sent.operation, sent.body, delivery, sent.answer, sent.sender, drops_answer=True)


def _settle(sent: _Sent, kind: Kind, what: object) -> None:
    if not sent.answer.done():
        sent.answer.set_result((kind, what))
