# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 without I/O: windows to the byte, limits, frames from hostile peers, and any way of cutting the input."""

from __future__ import annotations

import gzip
import random
import struct

import pytest
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from chantier.wire import frames as h2
from chantier.wire.connection import Connection
from chantier.wire.frames import Limits, frame
from chantier.wire.headers import (
    Metadata,
    decode_metadata,
    decode_timeout,
    encode,
    encode_metadata,
    encode_timeout,
    percent_decode,
    percent_encode,
)
from chantier.wire.status import GrpcError
from chantier.wire.stream import MessageReader, Stream

from .peers import REQUEST, Pair, messages

BLOCK = encode(REQUEST)
RESPONSE = [(b":status", b"200"), (b"content-type", b"application/grpc")]
SMALL = Limits(window_bytes=65_535, connection_window_bytes=100_000)
START = h2.PREFACE + h2.settings({})


class Server:
    """A server's Connection that a test feeds by hand."""

    def __init__(self, limits: Limits | None = None, *, start: bool = True, now: float = 0.0) -> None:
        self.now = now
        self.out: list[bytes] = []
        self.streams: list[Stream] = []
        self.conn = Connection("server", self.out.append, limits=limits, clock=lambda: self.now)
        self.conn.on_stream = self.streams.append
        if start:
            self.feed(START)

    def feed(self, *data: bytes) -> Server:
        for part in data:
            self.conn.feed(part)
        return self

    def open(self, id: int = 1, block: bytes = BLOCK, flags: int = h2.END_HEADERS) -> Stream:
        self.feed(frame(h2.HEADERS, flags, id, block))
        return self.streams[-1]

    @property
    def frames(self) -> list[tuple[int, int, int, bytes]]:
        data, at, found = b"".join(self.out), 0, []
        while at < len(data):
            high, low, kind, flags, id = h2.HEADER.unpack_from(data, at)
            length = high << 8 | low
            found.append((kind, flags, id, data[at + 9 : at + 9 + length]))
            at += 9 + length
        return found

    def sent(self, kind: int) -> list[tuple[int, int, int, bytes]]:
        return [f for f in self.frames if f[0] == kind]

    @property
    def goaway(self) -> int | None:
        found = self.sent(h2.GOAWAY)
        return struct.unpack(">I", found[-1][3][4:8])[0] if found else None


def data(id: int, payload: bytes, flags: int = 0) -> bytes:
    return frame(h2.DATA, flags, id, payload)


def message(payload: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(payload)) + payload


# -- a conversation ------------------------------------------------------------------------------------------------------


def converse(cut: int) -> tuple[object, ...]:
    pair = Pair()
    pair.move(cut)
    stream = pair.client.open(REQUEST)
    for n in range(50):
        stream.write(b"%d" % n * (n * 37 % 500))
    stream.write(bytes(300_000))
    stream.end()
    pair.move(cut)
    served = pair.accepted[0]
    got = messages(served)
    pair.server.send_headers(served, RESPONSE)
    for item in got:
        served.write(item)
    served.end(encode([(b"grpc-status", b"0"), (b"grpc-message", b"x" * 40_000)]))
    pair.move(cut)
    back = messages(stream)
    assert not pair.client.streams and not pair.server.streams
    assert pair.client.closed is None and pair.server.closed is None
    return got, back, stream.headers, stream.trailers, stream.reset


def test_any_way_of_cutting_gives_the_same() -> None:
    whole = converse(0)
    got, back, _headers, trailers, reset = whole
    assert got == back and len(got) == 51
    assert reset is None and trailers[0] == (b"grpc-status", b"0")
    for cut in (1, 2, 8, 9, 10, 1000, 16_384 + 9):
        assert converse(cut) == whole


def test_window_is_used_to_the_last_byte_and_not_beyond() -> None:
    pair = Pair(server=SMALL)
    pair.move()
    stream = pair.client.open(REQUEST)
    stream.write(bytes(200_000))
    pair.move()
    served = pair.accepted[0]
    assert served.inbox_bytes == 65_535 and served.recv_window == 0
    assert stream.send_window == 0 and stream.out_bytes == 200_005 - 65_535
    reader = MessageReader(served, 1 << 20)
    rounds = 0
    while (found := reader.next()) is None:
        pair.move()
        rounds += 1
        assert served.recv_window <= 65_535 and rounds < 100
    assert len(found) == 200_000
    pair.move()
    assert served.unread == 0 and pair.server.unread == 0


def test_connection_window_is_shared_and_exact() -> None:
    pair = Pair(server=SMALL)
    pair.move()
    streams = [pair.client.open(REQUEST) for _ in range(3)]
    for stream in streams:
        stream.write(bytes(65_000))
    pair.move()
    assert sum(s.inbox_bytes for s in pair.accepted) == 100_000
    total = 0
    for _ in range(20):
        for served in pair.accepted:
            taken = b"".join(served.take_inbox())
            total += len(taken)
            served.consumed(len(taken))
        pair.move()
    assert total == 3 * 65_005


def test_streams_take_turns() -> None:
    pair = Pair()
    pair.move()
    pair.client.pause()
    first, second = pair.client.open(REQUEST), pair.client.open(REQUEST)
    first.write(bytes(1_000_000))
    second.write(bytes(100_000))
    pair.client.resume()
    sizes = [(f[2], len(f[3])) for f in _frames(b"".join(pair.to_server)) if f[0] == h2.DATA]
    place = {id: [n for n, (i, _) in enumerate(sizes) if i == id] for id in (1, 3)}
    assert max(place[3]) < max(place[1]) // 2


def _frames(raw: bytes) -> list[tuple[int, int, int, bytes]]:
    server = Server(start=False)
    server.out = [raw]
    return server.frames


def test_sender_keeps_within_a_window_that_shrinks() -> None:
    server = Server()
    stream = server.open()
    server.feed(h2.settings({h2.INITIAL_WINDOW_SIZE: 10}))
    server.conn.send_headers(stream, RESPONSE)
    stream.write(bytes(100))
    sent = server.sent(h2.DATA)
    assert sum(len(f[3]) for f in sent) == 10
    server.feed(h2.settings({h2.INITIAL_WINDOW_SIZE: 0}))  # now ten below zero
    server.feed(h2.window_update(1, 10))
    assert sum(len(f[3]) for f in server.sent(h2.DATA)) == 10
    server.feed(h2.window_update(1, 1))
    assert sum(len(f[3]) for f in server.sent(h2.DATA)) == 11
    stream.end(encode([(b"grpc-status", b"0")]))
    assert len(server.sent(h2.HEADERS)) == 1  # trailers wait for the data
    server.feed(h2.window_update(1, 1000))
    assert sum(len(f[3]) for f in server.sent(h2.DATA)) == 105
    assert [f[1] & 1 for f in server.sent(h2.HEADERS)] == [0, 1]


def test_reset_without_error_after_trailers_is_success() -> None:
    pair = Pair()
    pair.move()
    stream = pair.client.open(REQUEST)
    pair.move()
    served = pair.accepted[0]
    pair.server.send_headers(served, RESPONSE)
    served.write(b"answer")
    served.end(encode([(b"grpc-status", b"0")]))  # the client has not ended its side
    assert [f[0] for f in _frames(b"".join(pair.to_client))][-1] == h2.RST_STREAM
    pair.move()
    assert stream.reset is None and messages(stream) == [b"answer"]
    assert not pair.client.streams and not pair.server.streams


def test_goaway_spares_streams_it_covers() -> None:
    pair = Pair()
    pair.move()
    first = pair.client.open(REQUEST)
    pair.move()
    second = pair.client.open(REQUEST)
    pair.server.drain(final=True)
    pair.move()
    assert first.reset is None
    assert second.reset is not None and second.reset.refused
    assert not pair.client.usable
    pair.server.send_headers(pair.accepted[0], RESPONSE)
    pair.accepted[0].end(encode([(b"grpc-status", b"0")]))
    pair.move()
    assert first.trailers is not None and len(pair.accepted) == 1


def test_more_streams_than_allowed_are_refused() -> None:
    pair = Pair(server=Limits(streams=2))
    pair.move()
    assert pair.client.peer_streams == 2
    streams = [pair.client.open(REQUEST) for _ in range(3)]
    pair.move()
    assert len(pair.accepted) == 2
    assert streams[2].reset is not None and streams[2].reset.refused


def test_handlers_that_still_run_count_as_streams() -> None:
    server = Server(Limits(streams=1))
    server.open()
    server.conn.running += 1
    server.feed(h2.rst_stream(1, h2.CANCEL))
    server.feed(frame(h2.HEADERS, h2.END_HEADERS, 3, BLOCK))
    assert len(server.streams) == 1
    server.conn.running -= 1
    server.open(5)
    assert len(server.streams) == 2


# -- messages ------------------------------------------------------------------------------------------------------------


def test_gzip_is_undone_within_the_limit() -> None:
    server = Server()
    stream = server.open()
    stream.declared_encoding = b"gzip"
    server.feed(data(1, message(gzip.compress(b"a" * 1000), 1) + message(b"plain")))
    assert messages(stream) == [b"a" * 1000, b"plain"]
    server.feed(data(1, message(gzip.compress(bytes(2_000_000)), 1)))
    with pytest.raises(GrpcError, match="larger than max") as caught:
        messages(stream, 1_000_000)
    assert caught.value.code == 8


@pytest.mark.parametrize(
    ("encoding", "flag", "body", "code"),
    [(b"snappy", 1, b"x", 12), (b"gzip", 1, b"no gzip", 13), (b"gzip", 1, gzip.compress(b"x" * 99)[:-9], 13)],
    ids=["unknown", "no gzip", "cut"],
)
def test_messages_that_cannot_be_decoded(encoding: bytes, flag: int, body: bytes, code: int) -> None:
    server = Server()
    stream = server.open()
    stream.declared_encoding = encoding
    server.feed(data(1, message(body, flag)))
    with pytest.raises(GrpcError) as caught:
        messages(stream)
    assert caught.value.code == code


def test_a_message_over_the_limit_is_refused_by_its_head() -> None:
    server = Server()
    stream = server.open()
    server.feed(data(1, struct.pack(">BI", 0, 1001)))
    with pytest.raises(GrpcError, match=r"received message larger than max \(1001 vs. 1000\)") as caught:
        messages(stream, 1000)
    assert caught.value.code == 8


# -- what peers may not do -----------------------------------------------------------------------------------------------

BROKEN = {
    "no preface": (b"GET / HTTP/1.1\r\n\r\n", h2.PROTOCOL_ERROR),
    "no settings first": (h2.PREFACE + frame(h2.PING, 0, 0, bytes(8)), h2.PROTOCOL_ERROR),
    "acknowledged settings first": (h2.PREFACE + frame(h2.SETTINGS, h2.ACK, 0), h2.PROTOCOL_ERROR),
    "frame too large": (START + b"\x05\0\0\0\0\0\0\0\1", h2.FRAME_SIZE_ERROR),
    "data before headers": (START + data(1, b"x"), h2.PROTOCOL_ERROR),
    "data for stream 0": (START + data(0, b"x"), h2.PROTOCOL_ERROR),
    "even stream": (START + frame(h2.HEADERS, h2.END_HEADERS, 2, BLOCK), h2.PROTOCOL_ERROR),
    "headers for stream 0": (START + frame(h2.HEADERS, h2.END_HEADERS, 0, BLOCK), h2.PROTOCOL_ERROR),
    "interrupted block": (START + frame(h2.HEADERS, 0, 1, BLOCK) + data(1, b"x"), h2.PROTOCOL_ERROR),
    "continued by another": (START + frame(h2.HEADERS, 0, 1, BLOCK) + frame(h2.CONTINUATION, 4, 3), h2.PROTOCOL_ERROR),
    "lone continuation": (START + frame(h2.CONTINUATION, 4, 1, b""), h2.PROTOCOL_ERROR),
    "bad hpack": (START + frame(h2.HEADERS, h2.END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"), h2.COMPRESSION_ERROR),
    "padding": (START + frame(h2.HEADERS, h2.END_HEADERS | h2.PADDED, 1, b"\x05\0"), h2.PROTOCOL_ERROR),
    "priority cut": (START + frame(h2.HEADERS, h2.END_HEADERS | h2.PRIORITY_FLAG, 1, b"\0\0"), h2.FRAME_SIZE_ERROR),
    "priority size": (START + frame(h2.PRIORITY, 0, 1, b"1234"), h2.FRAME_SIZE_ERROR),
    "rst size": (START + frame(h2.RST_STREAM, 0, 1, b"123"), h2.FRAME_SIZE_ERROR),
    "rst idle": (START + h2.rst_stream(1, 8), h2.PROTOCOL_ERROR),
    "settings size": (START + frame(h2.SETTINGS, 0, 0, b"12345"), h2.FRAME_SIZE_ERROR),
    "settings stream": (START + frame(h2.SETTINGS, 0, 1, b""), h2.PROTOCOL_ERROR),
    "settings ack": (START + frame(h2.SETTINGS, h2.ACK, 0, b"123456"), h2.FRAME_SIZE_ERROR),
    "settings window": (START + h2.settings({h2.INITIAL_WINDOW_SIZE: 1 << 31}), h2.FLOW_CONTROL_ERROR),
    "settings frame": (START + h2.settings({h2.MAX_FRAME_SIZE: 100}), h2.PROTOCOL_ERROR),
    "settings push": (START + h2.settings({h2.ENABLE_PUSH: 2}), h2.PROTOCOL_ERROR),
    "settings many": (START + frame(h2.SETTINGS, 0, 0, b"\0\x99\0\0\0\0" * 1000), h2.ENHANCE_YOUR_CALM),
    "ping size": (START + frame(h2.PING, 0, 0, b"1"), h2.FRAME_SIZE_ERROR),
    "ping stream": (START + frame(h2.PING, 0, 1, bytes(8)), h2.PROTOCOL_ERROR),
    "goaway size": (START + frame(h2.GOAWAY, 0, 0, b"1"), h2.FRAME_SIZE_ERROR),
    "push promise": (START + frame(h2.PUSH_PROMISE, 4, 1, bytes(9)), h2.PROTOCOL_ERROR),
    "update zero": (START + h2.window_update(0, 0), h2.PROTOCOL_ERROR),
    "update overflow": (START + h2.window_update(0, h2.MAX_WINDOW), h2.FLOW_CONTROL_ERROR),
    "update idle": (START + h2.window_update(1, 1), h2.PROTOCOL_ERROR),
    "update size": (START + frame(h2.WINDOW_UPDATE, 0, 0, b"1"), h2.FRAME_SIZE_ERROR),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_ends_the_connection(name: str) -> None:
    raw, code = BROKEN[name]
    server = Server(start=False).feed(raw)
    assert server.goaway == code
    assert server.conn.closed is not None and server.conn.closed.reason
    before = len(server.out)
    server.feed(START, data(1, b"x"))  # nothing is read any more
    assert len(server.out) == before


def headers(*extra: tuple[bytes, bytes], without: bytes = b"") -> bytes:
    return encode([*(h for h in REQUEST if h[0] != without), *extra])


STREAM_BROKEN = {
    "upper case": headers((b"X-Y", b"1")),
    "connection": headers((b"connection", b"close")),
    "te": headers((b"te", b"gzip")),
    "pseudo after": headers((b"a", b"b"), (b":path", b"/")),
    "pseudo twice": encode([*REQUEST, (b":method", b"POST")]),
    "no path": headers(without=b":path"),
    "no method": headers(without=b":method"),
    "status": encode([(b":status", b"200"), *REQUEST]),
}


@pytest.mark.parametrize("name", STREAM_BROKEN)
def test_what_ends_a_stream(name: str) -> None:
    server = Server()
    server.feed(frame(h2.HEADERS, h2.END_HEADERS, 1, STREAM_BROKEN[name]))
    assert server.sent(h2.RST_STREAM) == [(h2.RST_STREAM, 0, 1, struct.pack(">I", h2.PROTOCOL_ERROR))]
    assert not server.streams and not server.conn.streams
    server.open(3)
    assert server.conn.closed is None


def test_data_beyond_the_window() -> None:
    server = Server(Limits(window_bytes=65_535, connection_window_bytes=1 << 20))
    server.open()
    for _ in range(4):
        server.feed(data(1, bytes(16_384)))
    assert server.sent(h2.RST_STREAM)[0][3] == struct.pack(">I", h2.FLOW_CONTROL_ERROR)
    server = Server(SMALL)
    server.open(1)
    server.open(3)
    for n in range(8):
        server.feed(data(1 + 2 * (n & 1), bytes(16_000)))
    assert server.goaway == h2.FLOW_CONTROL_ERROR


def test_stream_window_overflow_resets_the_stream() -> None:
    server = Server()
    stream = server.open()
    server.feed(h2.window_update(1, h2.MAX_WINDOW))
    assert stream.reset is not None and stream.reset.code == h2.FLOW_CONTROL_ERROR
    assert server.conn.closed is None


def test_padding_counts_against_windows_and_is_given_back() -> None:
    server = Server(SMALL)
    stream = server.open()
    for _ in range(1000):
        server.feed(data(1, b"\xff" + b"x" + bytes(255), h2.PADDED))
    assert stream.reset is None and stream.inbox_bytes == 1000
    assert server.conn.closed is None


# -- floods --------------------------------------------------------------------------------------------------------------

FLOODS = {
    "ping": frame(h2.PING, 0, 0, bytes(8)),
    "ping ack": frame(h2.PING, h2.ACK, 0, bytes(8)),
    "settings": h2.settings({h2.INITIAL_WINDOW_SIZE: 70_000}),
    "empty data": data(1, b""),
    "padding alone": data(1, b"\xff" + bytes(255), h2.PADDED),
    "priority": frame(h2.PRIORITY, 0, 1, bytes(5)),
    "unknown": frame(0x42, 0, 0, b"x"),
    "window update": h2.window_update(1, 1),
    "connection window update": h2.window_update(0, 1),
    "rst of nothing": h2.rst_stream(1, 0) + h2.rst_stream(1, 0),
}


@pytest.mark.parametrize("name", FLOODS)
def test_frames_that_move_nothing_are_bounded(name: str) -> None:
    server = Server()
    server.open()
    for _ in range(200):
        server.feed(FLOODS[name] * 100)
    assert server.goaway == h2.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("name", ["ping", "settings", "window update"])
def test_the_same_frames_over_time_or_with_data_are_fine(name: str) -> None:
    server = Server()
    server.open()
    for _ in range(400):
        server.feed(FLOODS[name] * 100)
        server.now += 0.2
    server.feed((FLOODS[name] + data(1, b"x")) * 20_000)
    assert server.conn.closed is None


def test_streams_opened_to_be_reset_are_bounded() -> None:
    server = Server()
    for n in range(2000):
        server.feed(frame(h2.HEADERS, h2.END_HEADERS, 2 * n + 1, BLOCK) + h2.rst_stream(2 * n + 1, h2.CANCEL))
        if server.conn.closed:
            break
    assert server.goaway == h2.ENHANCE_YOUR_CALM and 900 < n < 1100


def test_continuation_flood_is_bounded() -> None:
    server = Server().feed(frame(h2.HEADERS, 0, 1, BLOCK))
    server.feed(*[frame(h2.CONTINUATION, 0, 1, b"\0" * 16_000) for _ in range(100)])
    assert server.goaway == h2.ENHANCE_YOUR_CALM
    server = Server().feed(frame(h2.HEADERS, 0, 1, BLOCK))
    server.feed(*[frame(h2.CONTINUATION, 0, 1, b"") for _ in range(1000)])
    assert server.goaway == h2.ENHANCE_YOUR_CALM


def test_a_header_list_that_unpacks_to_much_is_refused() -> None:
    encoder = Encoder()
    block = encoder.encode([*REQUEST, (b"x-bomb", b"b" * 4000)])
    server = Server(Limits(header_list_bytes=100_000))
    server.feed(frame(h2.HEADERS, h2.END_HEADERS, 1, block + b"\xbe" * 10_000))  # the same field again and again
    assert server.goaway == h2.ENHANCE_YOUR_CALM


def test_answers_that_are_not_read_are_bounded() -> None:
    """Pings of a peer that sends data as well, and never reads: the carrier says that it is full."""
    taken: list[bytes] = []
    conn = Connection("server", taken.append, schedule=lambda: None)  # flush is never called
    conn.feed(START + frame(h2.HEADERS, h2.END_HEADERS, 1, BLOCK))
    for _ in range(100_000):
        conn.feed(frame(h2.PING, 0, 0, bytes(8)) + data(1, b"x"))
        if conn.closed:
            break
    assert conn.closed is not None and conn.closed.code == h2.ENHANCE_YOUR_CALM


def test_small_pieces_take_little_memory() -> None:
    server = Server()
    stream = server.open()
    for _ in range(300):
        server.feed(data(1, b"xy") * 1000)
    for _ in range(1000):
        server.feed(data(1, b"xy"))
    assert stream.inbox_bytes == 602_000
    assert len(stream.inbox) < 310  # each costs some 35 bytes more than it holds


def test_many_frames_are_held_to_the_window_one_by_one() -> None:
    """What came before the window was exceeded stays readable."""
    server = Server(Limits(window_bytes=65_535, connection_window_bytes=1 << 20))
    stream = server.open()
    server.feed(data(1, b"x" * 1000) * 66)
    assert server.sent(h2.RST_STREAM)[0][3] == struct.pack(">I", h2.FLOW_CONTROL_ERROR)
    assert stream.inbox_bytes == 65_000


# -- anything at all -----------------------------------------------------------------------------------------------------

payloads = st.one_of(
    st.binary(max_size=40),
    st.just(BLOCK),
    st.just(message(b"hello")),
    st.integers(0, (1 << 32) - 1).map(lambda n: n.to_bytes(4, "big")),
    st.just(bytes(8)),
)
random_frames = st.builds(
    frame,
    st.one_of(st.integers(0, 9), st.integers(0, 255)),
    st.one_of(st.sampled_from([0, 1, 4, 5, 8, 12, 13, 32, 36]), st.integers(0, 255)),
    st.one_of(st.integers(0, 9), st.integers(0, (1 << 32) - 1)),
    payloads,
)
opening = st.sampled_from(range(1, 12, 2)).map(lambda n: frame(h2.HEADERS, h2.END_HEADERS, n, BLOCK))
traffic = st.lists(
    st.one_of(random_frames, opening, st.builds(data, st.sampled_from([1, 3, 5]), st.binary(max_size=60))), max_size=40
)


def state(conn: Connection, out: list[bytes], streams: list[Stream]) -> tuple[object, ...]:
    return (
        b"".join(out),
        conn.closed,
        conn.unread,
        [
            (s.id, s.headers, s.trailers, b"".join(s.inbox), s.remote_closed, s.reset, s.recv_window, s.send_window)
            for s in streams
        ],
    )


@settings(max_examples=300, deadline=None)
@given(traffic, st.integers(1, 50), st.booleans(), st.booleans())
def test_anything_is_borne_and_cutting_changes_nothing(parts: list[bytes], cut: int, client: bool, start: bool) -> None:
    raw = b"".join(parts)
    if start:
        raw = (h2.settings({}) if client else START) + raw
    results = []
    for size in (len(raw) or 1, cut):
        out: list[bytes] = []
        streams: list[Stream] = []
        conn = Connection("client" if client else "server", out.append, limits=SMALL, clock=lambda: 0.0)
        conn.on_stream = streams.append
        if client:
            streams = [conn.open(REQUEST) for _ in range(3)]
            streams[0].write(b"request")
        for at in range(0, len(raw), size):
            conn.feed(raw[at : at + size])
        assert conn.unread <= 100_000 + len(raw)
        assert sum(map(len, out)) < 10_000 + 40 * len(raw)
        results.append(state(conn, out, streams))
    assert results[0] == results[1]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 40), st.integers(1, 400))
def test_mutated_conversations_are_borne(seed: int, changes: int, cut: int) -> None:
    rng = random.Random(seed)
    pair = Pair(server=SMALL)
    stream = pair.client.open([*REQUEST, (b"x-long", b"v" * 300)])
    for _ in range(5):
        stream.write(rng.randbytes(rng.randrange(3000)))
    stream.end()
    raw = bytearray(b"".join(pair.to_server))
    for _ in range(changes):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    server = Server(SMALL, start=False)
    for at in range(0, len(raw), cut):
        server.feed(bytes(raw[at : at + cut]))
    for found in server.streams:
        try:
            messages(found, 4000)
        except GrpcError:
            pass
    assert server.conn.unread <= len(raw)


# -- headers -------------------------------------------------------------------------------------------------------------

keys = st.from_regex(r"[a-z0-9_.-]{1,20}", fullmatch=True).filter(
    lambda k: not k.startswith("grpc-") and k not in ("content-type", "te", "user-agent", "trailer")
)
texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30).map(str.strip)


@given(
    st.lists(
        st.one_of(
            st.tuples(keys.filter(lambda k: not k.endswith("-bin")), texts),
            st.tuples(keys.map(lambda k: k + "-bin"), st.binary(max_size=30)),
        ),
        max_size=8,
    )
)
def test_metadata_survives(items: list[tuple[str, str | bytes]]) -> None:
    from hpack import Decoder

    fields = [(bytes(n), bytes(v)) for n, v in Decoder().decode(encode(encode_metadata(items)), raw=True)]
    assert decode_metadata(fields) == Metadata(items)


def test_binary_metadata_may_be_joined_or_padded() -> None:
    found = decode_metadata([(b"a-bin", b"AAE,AQ=="), (b"b-bin", b"*")])
    assert list(found) == [("a-bin", b"\x00\x01"), ("a-bin", b"\x01")]


@pytest.mark.parametrize("key", ["", "Ü", "a b", "grpc-status", ":path", "a\n"])
def test_names_no_header_may_have(key: str) -> None:
    with pytest.raises(ValueError, match="invalid metadata key"):
        encode_metadata({key: "x"})


def test_values_no_header_may_have() -> None:
    with pytest.raises(ValueError, match="invalid metadata value"):
        encode_metadata({"a": "x\ny"})


@given(st.text(max_size=60))
def test_status_text_survives(text: str) -> None:
    coded = percent_encode(text)
    assert all(32 <= b <= 126 for b in coded)
    assert percent_decode(coded) == text.encode("utf-8", "replace").decode()


@given(st.floats(1e-9, 1e9))
def test_timeouts_are_at_least_what_was_asked(seconds: float) -> None:
    found = decode_timeout(encode_timeout(seconds))
    assert found is not None
    assert seconds * 0.999999 <= found <= seconds * 1.02 + 1e-9


@pytest.mark.parametrize("text", [b"", b"S", b"1", b"123456789S", b"-1S", b"1x", b"1 S"])
def test_what_is_no_timeout(text: bytes) -> None:
    assert decode_timeout(text) is None
