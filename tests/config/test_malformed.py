# SPDX-License-Identifier: Apache-2.0
"""Each NAME.toml in malformed/ is refused with the one line that NAME.txt begins with."""

from pathlib import Path

import pytest

from chantier.config import load, parse
from chantier.errors import ConfigError

CASES = sorted((Path(__file__).parent / "malformed").glob("*.toml"))


def test_there_are_cases() -> None:
    assert len(CASES) >= 15


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.stem)
def test_malformed(case: Path) -> None:
    expected = case.with_suffix(".txt").read_text().rstrip("\n")
    with pytest.raises(ConfigError) as caught:
        parse(case.read_text(), "FILE")
    err = caught.value
    exact = "not valid TOML" not in expected  # tomllib's own words differ between Python versions
    assert err.brief == expected if exact else err.brief.startswith(expected)
    assert "\n" not in err.brief
    assert err.file == "FILE"
    assert err.line == int(expected.split(":")[1])
    assert err.hint


def test_every_mistake_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        parse('debug = 1\n[worker.oci]\nbinray = "crun"\n[dns]\nnameservers = "1.1.1.1"\n', "f")
    assert caught.value.brief.startswith("f:1: debug: ")
    assert [line.split(": ")[0] for line in (caught.value.detail or "").splitlines()] == ["f:3", "f:5"]
    assert caught.value.key == "debug"


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not-there\.toml: config file not found"):
        load(tmp_path / "not-there.toml")
    with pytest.raises(ConfigError, match="cannot read config file: is a directory"):
        load(tmp_path)
    bad = tmp_path / "latin1.toml"
    bad.write_bytes(b'# ok\nroot = "\xe9"\n')
    with pytest.raises(ConfigError, match=r"latin1\.toml:2: config file is not UTF-8"):
        load(bad)
