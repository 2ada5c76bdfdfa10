# SPDX-License-Identifier: Apache-2.0
"""Bad input through the command: one screen, the cause, the place, what to do; never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from chantier.cli.main import main

TESTS = Path(__file__).resolve().parents[1]
DOCKERFILES = sorted((TESTS / "dockerfile" / "malformed").glob("*.dockerfile"))
CONFIGS = sorted((TESTS / "config" / "malformed").glob("*.toml"))


def _run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    code = main(list(args))
    return code, capsys.readouterr().err


def _check_screen(text: str) -> str:
    assert "Traceback" not in text
    assert "internal error" not in text
    lines = text.splitlines()
    assert len(lines) <= 24, text
    errors = [line for line in lines if line.startswith("ERROR: ")]
    assert len(errors) == 1, text
    assert any(line.startswith("hint: ") for line in lines), text
    return errors[0]


def test_there_are_enough_of_them() -> None:
    assert len(DOCKERFILES) >= 40
    assert len(CONFIGS) >= 15


@pytest.mark.root
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.stem)
def test_malformed_dockerfiles(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CHANTIER_ROOT", str(tmp_path / "state"))
    monkeypatch.setenv("CHANTIER_CONFIG", str(tmp_path / "none.toml"))
    (tmp_path / "none.toml").write_text("")
    (tmp_path / "context").mkdir()
    code, err = _run(capsys, "build", "--progress=quiet", "-f", str(path), str(tmp_path / "context"))
    assert code == 1
    error = _check_screen(err)
    assert "failed to solve: " in error


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_malformed_configs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = _run(capsys, "config", "check", str(path))
    assert code == 1
    assert f"{path}:" in _check_screen(err)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["build"], "PATH | URL | -"),
        (["build", "--nope", "."], "unknown flag: --nope"),
        (["build", "/nope"], 'path "/nope" not found'),
        (["build", "--shm-size=zz", "."], "invalid size: 'zz'"),
        (["build", "-t", "UPPER", "."], 'invalid tag "UPPER"'),
        (["build", "--secret", "src=x", "."], "secret missing ID"),
        (["build", "-o", "dest=x,name=y", "."], "type is required for output"),
        (["build", "--config", "/nope.toml", "."], "/nope.toml"),
        (["nope"], 'unknown command: "nope"'),
    ],
)
def test_bad_arguments(args: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = _run(capsys, *args)
    assert code == 1
    assert "Traceback" not in err
    assert text in err
