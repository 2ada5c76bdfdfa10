# SPDX-License-Identifier: Apache-2.0
"""Every command explains itself with an example, knows what was meant, and completes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chantier import __version__
from chantier.cli.args import LIST
from chantier.cli.main import COMMANDS, load, main


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDX_CONFIG", str(tmp_path / "buildx"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "BUILDX_BUILDER", "BUILDKIT_HOST"):
        monkeypatch.delenv(name, raising=False)


def options(name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit):
        load(name)([LIST], False)
    return [word for word in capsys.readouterr().out.split() if word.startswith("--")]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: chantier {name}")
    example = said.partition("\nexample:\n")[2].splitlines()
    assert example and any(f"chantier {name}" in line for line in example)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_that_was_nearly_right(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option in options(name, capsys):
        if len(option) < 7:
            continue
        wrong = option[:3] + option[4:]  # a letter is missing
        assert main([name, wrong]) == 1
        said = capsys.readouterr().err
        assert f"unknown flag: {wrong}" in said, said
        assert f"hint: did you mean {option}?" in said, said


def test_a_command_that_was_nearly_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["creat"]) == 1
    assert 'ERROR: unknown command: "creat" (did you mean create?)' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["cre"], ["create"]),
        (["create", "--boo"], ["--bootstrap"]),
        (["create", "--buildkitd-"], ["--buildkitd-config", "--buildkitd-flags"]),
        (["config", "ch"], ["check"]),
        (["use", "bo"], ["box"]),
        (["build", "--builder", ""], ["embedded", "box", "default"]),
        (["nope", "x"], []),
    ],
)
def test_completion(words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["create", "--name", "box", "unix:///nowhere.sock"]) == 0
    capsys.readouterr()
    assert main(["__complete", *words]) == 0
    assert capsys.readouterr().out.split() == expected


def test_bash_completes(tmp_path: Path) -> None:
    """A real bash with the script that we print."""
    program = tmp_path / "chantier"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m chantier "$@"\n')
    program.chmod(0o755)
    script = """source <(chantier completion bash)
COMP_WORDS=(chantier build --target=x --cache-) COMP_CWORD=3
_chantier
printf '%s\\n' "${COMPREPLY[@]}"
complete -p chantier"""
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["--cache-from", "--cache-to", "complete -F _chantier chantier"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_parse(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "chantier __complete" in script
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=script, text=True, timeout=60, check=True)


def test_version_in_both_forms(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"chantier {__version__}\n"
    assert main(["version", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == __version__
