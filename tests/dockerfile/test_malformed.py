# SPDX-License-Identifier: Apache-2.0
"""Every file under malformed/ fails with the text and the line that stand beside it, and with advice."""

from __future__ import annotations

from pathlib import Path

import pytest

from chantier.dockerfile import Linter, parse
from chantier.errors import DockerfileError

FOLDER = Path(__file__).parent / "malformed"
CASES = sorted(path.stem for path in FOLDER.glob("*.dockerfile"))


def test_the_corpus_is_there() -> None:
    assert len(CASES) >= 40
    assert sorted(path.stem for path in FOLDER.glob("*.expected")) == CASES


@pytest.mark.parametrize("name", CASES)
def test_refusal(name: str) -> None:
    data = (FOLDER / f"{name}.dockerfile").read_bytes()
    line, _, brief = (FOLDER / f"{name}.expected").read_text().rstrip("\n").partition(": ")
    with pytest.raises(DockerfileError) as caught:
        parse(data, "build/Dockerfile", lint=Linter.for_file(data))
    err = caught.value
    assert err.brief == brief
    assert "\n" not in err.brief
    if line == "0":
        assert err.sources == []
    else:
        assert [s.ranges[0].start for s in err.sources] == [int(line)]
        assert err.sources[0].data == data
        assert err.sources[0].filename == "build/Dockerfile"
    assert err.hint
