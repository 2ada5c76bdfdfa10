# SPDX-License-Identifier: Apache-2.0
"""Reading tars: v7, ustar, PAX, GNU long names, GNU and PAX sparse files, base-256 numbers.

A stream of anybody's making: every number is checked before it is used, every malformed header is an IntegrityError that says
where. Global PAX headers are read over, as Go's archive/tar does for everybody who unpacks layers.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator

from chantier.errors import IntegrityError

from .header import BLOCK, DIRECTORY, HARDLINK, MAX_SPECIAL, REGULAR, SYMLINK, XATTR, Entry

_ZEROS = bytes(BLOCK)
_BLANK_SUM = 8 * 32
_MODULUS = 65521  # Adler-32's
_DECIMAL = re.compile(rb"-?[0-9]+\Z")
_TIME = re.compile(rb"(-?)([0-9]*)(?:\.([0-9]*))?\Z")
_KNOWN = frozenset([b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S"])
_MAX_KNOWN = 4096
_MAX_SPARSE = 1 << 20  # pieces of one file
_MAX_SIZE = (1 << 63) - 1


class TarReader:
    """Iterate for the entries; read each one's data with `data()` before going on, or leave it: it is skipped."""

    def __init__(self, source: Callable[[], bytes]) -> None:
        """`source` gives the tar in pieces of any size, and b"" at its end."""
        self._source = source
        self._chunk = b""
        self._at = 0
        self._base = 0  # place of the chunk in the tar
        self._over = False
        self._known: dict[bytes, int] = {}
        self._left = 0  # data of the current entry not yet read
        self._padding = 0
        self._entry: Entry | None = None

    @property
    def position(self) -> int:
        return self._base + self._at

    def __iter__(self) -> Iterator[Entry]:
        while True:
            entry = self._next()
            if entry is None:
                return
            yield entry

    def data(self) -> Iterator[bytes | memoryview]:
        """The data of the current entry as it lies in the tar (of a sparse file: its pieces, one after another)."""
        while self._left:
            rest = len(self._chunk) - self._at
            if not rest:
                self._fill()
                continue
            count = min(rest, self._left)
            start = self._at
            self._at += count
            self._left -= count
            whole = count == len(self._chunk)
            yield self._chunk if whole else memoryview(self._chunk)[start : start + count]

    def drain(self) -> None:
        """Read what follows the end marker: it belongs to the digest."""
        while self._more():
            pass

    def _more(self) -> bool:
        """Go to the next chunk; False at the end, and then the source is not asked again."""
        if self._over:
            return False
        self._base += len(self._chunk)
        self._chunk = self._source()
        self._at = 0
        self._over = not self._chunk
        return not self._over

    def _fill(self) -> None:
        if not self._more():
            raise self._bad("the tar ends within an entry")

    def _skip(self) -> None:
        left, padding = self._left, self._padding
        self._left = self._padding = 0
        while left > len(self._chunk) - self._at:
            left -= len(self._chunk) - self._at
            self._fill()
        self._at += left
        # Some writers (umoci insert) never close their tar: it ends right after the data of the last entry, as Go accepts.
        while padding > len(self._chunk) - self._at:
            padding -= len(self._chunk) - self._at
            if not self._more():
                return
        self._at += padding

    def _take(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        start = self._at
        if len(self._chunk) - start >= count:
            self._at = start + count
            return self._chunk[start : start + count]
        parts = []
        while count:
            if self._at == len(self._chunk):
                self._fill()
            part = self._chunk[self._at : self._at + count]
            self._at += len(part)
            count -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _block(self) -> bytes | None:
        """The next header block; None at the end: two zero blocks, or one and nothing more, or nothing."""
        if self._at == len(self._chunk) and not self._more():
            return None
        block = self._take(BLOCK)
        if block != _ZEROS:
            return block
        if self._at == len(self._chunk) and not self._more():
            return None
        if self._take(BLOCK) != _ZEROS:
            raise self._bad("a zero block stands between entries", at=self.position - 2 * BLOCK)
        return None

    def _bad(self, cause: str, *, at: int | None = None) -> IntegrityError:
        return IntegrityError(f"failed to read tar at byte {self.position if at is None else at}: {cause}")

    def _next(self) -> Entry | None:
        if self._left or self._padding:
            self._skip()
        records: dict[str, bytes] = {}
        pieces: list[tuple[int, int]] | None = None
        long_name = long_link = None
        while True:
            block = self._block()
            if block is None:
                if records or long_name is not None or long_link is not None:
                    raise self._bad("an extended header is followed by nothing")
                return None
            start = self.position - BLOCK
            kind = block[156:157]
            if kind in b"xXgLKV":  # g: global headers, V: GNU volume labels; both are read over
                size = self._number(block[124:136], "size")
                if size < 0 or size > MAX_SPECIAL:
                    raise self._bad(f"an extended header of {size} bytes", at=start)
                self._check_sum(block, start)
                raw = self._take(size)
                self._take(-size % BLOCK)
                if kind in b"xX":
                    records, pieces = self._records(raw, start)
                elif kind == b"L":
                    long_name = raw.partition(b"\0")[0]
                elif kind == b"K":
                    long_link = raw.partition(b"\0")[0]
                continue
            self._check_sum(block, start)
            return self._entry_of(block, start, kind, records, pieces, long_name, long_link)

    def _check_sum(self, block: bytes, start: int) -> None:
        field = block[148:156]
        # Adler-32's low half is the sum of the bytes plus one: a C loop where summing in Python would cost more than all else.
        stored = self._number(field, "checksum")
        total = (zlib.adler32(block) & 0xFFFF) - 1 - sum(field) + _BLANK_SUM
        if (total - stored) % _MODULUS == 0:
            return
        signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:]) + _BLANK_SUM
        if signed != stored:  # old Sun tars summed signed characters
            raise self._bad("wrong header checksum", at=start)

    def _number(self, field: bytes, what: str) -> int:
        """Octal, or base-256 where the first bit is set (GNU). Owners, modes and times repeat: most are known already."""
        value = self._known.get(field)
        if value is None:
            value = self._parse_number(field, what)
            if len(self._known) > _MAX_KNOWN:
                self._known.clear()
            self._known[field] = value
        return value

    def _parse_number(self, field: bytes, what: str) -> int:
        if field[0] & 0x80:
            bits = 8 * len(field) - 1  # what is left without the mark, in two's complement
            value = int.from_bytes(field, "big") - (1 << bits)
            if field[0] & 0x40:
                value -= 1 << bits
            if not -_MAX_SIZE <= value <= _MAX_SIZE:
                raise self._bad(f"{what} is out of range")
            return value
        text = field.strip(b" \0")
        if not text:
            return 0
        text = text.partition(b"\0")[0]
        try:
            if not text.isdigit():
                raise ValueError
            return int(text, 8)
        except ValueError:
            raise self._bad(f"{what} is no octal number: {field!r}") from None

    def _records(self, raw: bytes, start: int) -> tuple[dict[str, bytes], list[tuple[int, int]] | None]:
        """The records of a PAX extended header, and the pieces of a sparse file in GNU's 0.0 format."""
        records: dict[str, bytes] = {}
        offsets: list[int] = []
        lengths: list[int] = []
        at = 0
        while at < len(raw):
            space = raw.find(b" ", at, at + 20)
            digits = raw[at:space] if space > 0 else b""
            if not digits.isdigit():
                raise self._bad("an extended record has no length", at=start)
            end = at + int(digits)
            if end > len(raw) or end <= space or raw[end - 1 : end] != b"\n":
                raise self._bad("an extended record is longer than its header", at=start)
            key, equals, value = raw[space + 1 : end - 1].partition(b"=")
            if not equals or not key or b"\0" in key:
                raise self._bad("an extended record has no key", at=start)
            if key == b"GNU.sparse.offset":
                offsets.append(self._decimal(value, "sparse offset", start))
            elif key == b"GNU.sparse.numbytes":
                lengths.append(self._decimal(value, "sparse length", start))
            else:
                records[key.decode("utf-8", "surrogateescape")] = value
            at = end
        if not offsets and not lengths:
            return records, None
        if len(offsets) != len(lengths):
            raise self._bad("a sparse map is odd", at=start)
        return records, list(zip(offsets, lengths, strict=True))

    def _decimal(self, value: bytes, what: str, start: int) -> int:
        if not _DECIMAL.match(value) or len(value) > 20:
            raise self._bad(f"{what} is no number: {value[:40]!r}", at=start)
        return int(value)

    def _time(self, value: bytes, start: int) -> int:
        match = _TIME.match(value)
        if match is None or not (match[2] or match[3]) or len(match[2]) > 19:
            raise self._bad(f"a time is no number: {value[:40]!r}", at=start)
        nanoseconds = int(match[2] or b"0") * 1_000_000_000 + int((match[3] or b"").ljust(9, b"0")[:9])
        return -nanoseconds if match[1] else nanoseconds

    def _entry_of(
        self,
        block: bytes,
        start: int,
        kind: bytes,
        records: dict[str, bytes],
        pieces: list[tuple[int, int]] | None,
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> Entry:
        number = self._number
        name = block[:100].partition(b"\0")[0]
        link = block[157:257].partition(b"\0")[0]
        size = number(block[124:136], "size")
        uid, gid = number(block[108:116], "uid"), number(block[116:124], "gid")
        mtime_ns = number(block[136:148], "mtime") * 1_000_000_000
        major = minor = 0
        if block[257:262] == b"ustar":
            if kind in b"34":
                major, minor = number(block[329:337], "device major"), number(block[337:345], "device minor")
            if block[345] and block[257:265] != b"ustar  \0":  # GNU keeps other things where ustar has the prefix
                name = block[345:500].partition(b"\0")[0] + b"/" + name
        xattrs: dict[str, bytes] = {}
        if records:
            name = records.get("path") or name
            link = records.get("linkpath") or link
            uid = self._decimal(records["uid"], "uid", start) if records.get("uid") else uid
            gid = self._decimal(records["gid"], "gid", start) if records.get("gid") else gid
            size = self._decimal(records["size"], "size", start) if records.get("size") else size
            mtime_ns = self._time(records["mtime"], start) if records.get("mtime") else mtime_ns
            xattrs = {key[len(XATTR) :]: value for key, value in records.items() if key.startswith(XATTR)}
        name = long_name or name
        link = long_link or link
        if kind in (b"\0", b"7"):
            kind = REGULAR
        if kind == REGULAR and name.endswith(b"/"):  # how v7 wrote directories
            kind = DIRECTORY
        if kind not in _KNOWN:
            raise self._bad(f"unhandled tar header type {kind[0]}", at=start)
        if not 0 <= size <= _MAX_SIZE:
            raise self._bad(f"{name!r} has a size of {size}", at=start)
        if kind not in (REGULAR, b"S"):
            size = 0  # links may state their target's size, but no data follows
        if b"\0" in name or b"\0" in link:
            raise self._bad("a name contains NUL", at=start)
        if not name:
            raise self._bad("an entry has no name", at=start)
        if kind in (HARDLINK, SYMLINK) and not link:
            raise self._bad(f"the link {name!r} has no target", at=start)
        if not (0 <= uid < 2**32 - 1 and 0 <= gid < 2**32 - 1):
            raise self._bad(f"{name!r} has the owner {uid}:{gid}", at=start)
        self._left = size
        self._padding = -size % BLOCK
        mode = number(block[100:108], "mode") & 0o7777
        entry = Entry(name.rstrip(b"/") or b"/", kind, mode, uid, gid, size, mtime_ns, link, major, minor, xattrs)
        if kind == b"S" or pieces is not None or "GNU.sparse.map" in records or "GNU.sparse.major" in records:
            return self._sparse(entry, block, start, records, pieces)
        return entry

    def _sparse(
        self, entry: Entry, block: bytes, start: int, records: dict[str, bytes], pieces: list[tuple[int, int]] | None
    ) -> Entry:
        """GNU's four ways to write a file with holes (tar manual, "Storing Sparse Files")."""
        if entry.type == b"S":
            pieces = self._sparse_blocks(block)
            size = self._number(block[483:495], "size")
        elif entry.type != REGULAR:
            raise self._bad("a sparse map for what is no file", at=start)
        else:
            stated = records.get("GNU.sparse.realsize") or records.get("GNU.sparse.size")
            if stated is None:
                raise self._bad("a sparse file without its size", at=start)
            size = self._decimal(stated, "size", start)
            if records.get("GNU.sparse.major") == b"1":
                pieces = self._sparse_in_data(start)
            elif pieces is None and "GNU.sparse.map" in records:
                numbers = [self._decimal(text, "sparse map", start) for text in records["GNU.sparse.map"].split(b",") if text]
                if len(numbers) % 2:
                    raise self._bad("a sparse map is odd", at=start)
                pieces = list(zip(numbers[::2], numbers[1::2], strict=True))
        if pieces is None or ("GNU.sparse.major" in records and records["GNU.sparse.major"] not in (b"0", b"1")):
            raise self._bad("a sparse file of an unknown format", at=start)
        name = records.get("GNU.sparse.name", b"").rstrip(b"/") or entry.name
        last = 0
        for offset, length in pieces:
            if offset < last or length < 0 or offset + length > size:
                raise self._bad(f"the sparse map of {name!r} is out of order", at=start)
            last = offset + length
        if not 0 <= size <= _MAX_SIZE or sum(length for _, length in pieces) != self._left:
            raise self._bad(f"the sparse map of {name!r} does not fit its data", at=start)
        return entry._replace(name=name, type=REGULAR, size=self._left, sparse=tuple(pieces), real_size=size)

    def _sparse_blocks(self, block: bytes) -> list[tuple[int, int]]:
        """The old format: a map in the header and, after it, in blocks of 21 pieces."""
        pieces: list[tuple[int, int]] = []
        field, count, more = block[386:482], 4, block[482]
        while True:
            for index in range(count):
                item = field[24 * index : 24 * index + 24]
                if not item[0]:
                    break
                pieces.append((self._number(item[:12], "sparse offset"), self._number(item[12:], "sparse length")))
            if not more:
                return pieces
            if len(pieces) > _MAX_SPARSE:
                raise self._bad("a sparse map is too long")
            extension = self._take(BLOCK)
            field, count, more = extension[:504], 21, extension[504]

    def _sparse_in_data(self, start: int) -> list[tuple[int, int]]:
        """Format 1.0: the map is text at the head of the data, padded to whole blocks."""
        text = b""

        def line() -> int:
            nonlocal text
            while b"\n" not in text:
                if self._left < BLOCK or len(text) > 64:
                    raise self._bad("a sparse map does not end", at=start)
                text += self._take(BLOCK)
                self._left -= BLOCK
            head, _, text = text.partition(b"\n")
            return self._decimal(head, "sparse map", start)

        count = line()
        if not 0 <= count <= _MAX_SPARSE:
            raise self._bad("a sparse map is too long", at=start)
        return [(line(), line()) for _ in range(count)]
