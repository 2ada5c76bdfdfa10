# SPDX-License-Identifier: Apache-2.0
"""What counts more for chantierd: flags, the environment, the file."""

from __future__ import annotations

from pathlib import Path

from chantier.config import state_root
from chantier.daemon.flags import parse


def test_the_flag_for_the_root_counts_more_than_the_environment_and_that_more_than_the_file(tmp_path: Path) -> None:
    file = tmp_path / "chantierd.toml"
    file.write_text('root = "/of/the/file"\n')
    env = {"CHANTIER_CONFIG": str(file)}
    for args, more, wanted in (
        ([], {}, "/of/the/file"),
        ([], {"CHANTIER_ROOT": "/of/env"}, "/of/env"),
        (["--root", "/of/flag"], {"CHANTIER_ROOT": "/of/env"}, "/of/flag"),
        (["--root", "/of/flag"], {}, "/of/flag"),
    ):
        settings = parse(args, {**env, **more})
        assert state_root(settings.config, settings.env) == Path(wanted)
