"""How Connect's messages are read and written: the codecs and the compression of connectrpc, within our bounds."""

from __future__ import annotations

import re
import struct
import zlib
from typing import Any, Final

from connectrpc.code import Code
from connectrpc.codec import Codec
from connectrpc.compression.gzip import GzipCompression
from connectrpc.errors import ConnectError
from protobuf import Message

from osqueue_client import wire_json
from osqueue_client.errors import BrokerProtocolError

from .transport import refuse_lone_surrogate, unexpected

_PROTO_FIELD: Final = re.compile(r"for field [\w.]+\.(\w+)")
_STORED_UP_TO: Final = 1024

AnyMessage = Message[Any]


class MessageCodec(Codec[AnyMessage, AnyMessage]):
    """A codec of connectrpc that says in our words what is wrong with a message."""

    def __init__(self, codec: Codec[AnyMessage, AnyMessage]) -> None:
        self._codec = codec

    def name(self) -> str:
        return self._codec.name()

    def encode(self, message: AnyMessage) -> bytes:
        try:
            return self._codec.encode(message)
        except Exception as error:  # noqa: BLE001  # whatever it is
            raise ConnectError(Code.INTERNAL, unexpected(error).message) from None  # its own text stays here

    def decode(self, data: bytes | bytearray, message_class: type[AnyMessage]) -> AnyMessage:
        try:
            decoded: AnyMessage = self._codec.decode(data, message_class)
            return decoded
        except Exception as error:  # noqa: BLE001  # protobuf raises half a dozen kinds
            raise _malformed(message_class, error) from None


class JsonMessageCodec(MessageCodec):
    """The JSON codec behind a check: deep nesting ends the process in protobuf-py's own JSON reader."""

    def decode(self, data: bytes | bytearray, message_class: type[AnyMessage]) -> AnyMessage:
        name = _name_of(message_class)
        wire_json.check_text(bytes(data), name)
        refuse_lone_surrogate(bytes(data), name)
        return super().decode(data, message_class)


class OneMemberGzip(GzipCompression):
    """gzip of one member that stops at the limit; what is small is only wrapped: squeezing it costs more.

    The file format allows any number of members one after another. Nobody sends that, and unpacking many tiny ones
    takes time with the square of their number.
    """

    def decompress(self, data: bytes | bytearray | memoryview, read_max_bytes: int | None = None) -> bytes:
        member = zlib.decompressobj(wbits=31)
        unpacked = member.decompress(data, 0 if read_max_bytes is None else read_max_bytes + 1)
        if read_max_bytes is not None and len(unpacked) > read_max_bytes:
            raise ConnectError(Code.RESOURCE_EXHAUSTED, "too large when unpacked")
        if not member.eof:
            raise ConnectError(Code.INVALID_ARGUMENT, "the gzip data ends too early")
        if member.unused_data:
            raise ConnectError(Code.INVALID_ARGUMENT, "the gzip data has more than one member")
        return unpacked

    def compress(self, data: bytes | bytearray | memoryview) -> bytes:
        if len(data) > _STORED_UP_TO:
            return super().compress(data)
        size = len(data)
        block = struct.pack("<BHH", 1, size, size ^ 0xFFFF)  # RFC 1951, 3.2.4: one stored block, the last
        head = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # RFC 1952: deflate, no name, no time
        return b"".join((head, block, data, struct.pack("<II", zlib.crc32(data), size)))


def _name_of(message_class: type[AnyMessage]) -> str:
    rpc = message_class.__name__.removesuffix("Request")
    return rpc[:1].lower() + rpc[1:]


def _malformed(message_class: type[AnyMessage], error: Exception) -> BrokerProtocolError:
    """Name the field that protobuf could not read as it is spelt on the wire."""
    name, text = _name_of(message_class), str(error)
    if text.startswith("cannot decode"):  # what follows is all that was sent
        text = text.partition(" from JSON")[0] + " from what is not an object"
    if (named := _PROTO_FIELD.search(text)) is None:
        return BrokerProtocolError(f"{name}: the message is malformed: {text}", method=name)
    first, *rest = named.group(1).split("_")
    field = first + "".join(word.capitalize() for word in rest)
    return BrokerProtocolError(f"{name}: field '{field}': {text[: named.start()]}", field=field, method=name)
