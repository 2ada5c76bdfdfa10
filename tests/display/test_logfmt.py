# SPDX-License-Identifier: Apache-2.0
import io
import json
import logging
from collections.abc import Iterator

import pytest

from chantier.display.logfmt import TRACE, JsonFormatter, TextFormatter, install


def record(message: str, level: int = logging.DEBUG, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("chantier.registry", level, __file__, 1, message, (), None)
    made.created = 1700000000.5
    made.fields = fields
    return made


def test_text() -> None:
    line = TextFormatter().format(
        record("do request", **{"request.method": "HEAD", "host": "reg.test:5000", "request.header.accept": "a/b, */*", "n": 3})
    )
    assert line == (
        'time="2023-11-14T22:13:20Z" level=debug msg="do request" host="reg.test:5000" n=3 '
        'request.header.accept="a/b, */*" request.method=HEAD'
    )


def test_text_quotes_what_it_must() -> None:
    line = TextFormatter().format(record('a"b\\c\nd', empty="", bell="\x01", list=["a", "b c"], yes=True, plain="a-b._/@^+"))
    assert 'msg="a\\"b\\\\c\\nd"' in line
    assert line.endswith('bell="\\x01" empty="" list="[a b c]" plain=a-b._/@^+ yes=true')


def test_json() -> None:
    line = JsonFormatter().format(record("resolved", logging.WARNING, msg="x", **{"desc.digest": "sha256:a", "raw": b"b"}))
    assert json.loads(line) == {
        "level": "warning",
        "msg": "resolved",
        "time": "2023-11-14T22:13:20Z",
        "fields.msg": "x",
        "desc.digest": "sha256:a",
        "raw": "b'b'",
    }


def test_levels() -> None:
    said = [TextFormatter().format(record("x", n)).split()[1] for n in (TRACE, 10, 20, 30, 40, 50)]
    assert said == [f"level={name}" for name in ("trace", "debug", "info", "warning", "error", "fatal")]


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger("chantier")
    before = (root.level, root.propagate, list(root.handlers))
    yield io.StringIO()
    root.level, root.propagate, root.handlers = before


def test_install_replaces_itself(stream: io.StringIO) -> None:
    install("debug", "json", stream)
    install("info", "text", stream)
    logging.getLogger("chantier.registry").debug("hidden")
    logging.getLogger("chantier.registry").info("shown", extra={"fields": {"k": "v"}})
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("msg=shown k=v\n")
