# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from chantier.config import Config, Size, discover, dump, find, gc_rules, load, parse, state_root
from chantier.config.lines import line_map
from chantier.config.read import all_paths

WHOLE = Path(__file__).parent / "whole.toml"


def test_whole_file() -> None:
    config = load(WHOLE)
    assert config.log_level == "debug"
    assert config.entitlements == ("network.host", "security.insecure")
    assert config.grpc.address == ("tcp://0.0.0.0:1234",)
    assert config.grpc.tls.key == "/etc/buildkit/tls.key"
    oci = config.worker_oci
    assert oci.max_parallelism == 4
    assert dict(oci.labels) == {"foo": "bar"}
    assert oci.reserved_space == Size(percent=30)
    assert oci.min_free_space == Size(bytes=20 * 2**30)
    assert oci.gc_policies[0].keep_bytes == Size(bytes=512 * 2**20)
    assert oci.gc_policies[0].keep_duration_s == 48 * 3600
    assert oci.gc_policies[1].all
    assert config.registries["docker.io"].mirrors == ("yourmirror.local:5000", "core.harbor.domain/proxy.docker.io")
    assert config.registries["yourmirror.local:5000"].http is True
    assert config.registries["yourmirror.local:5000"].keypairs[0].cert == "/etc/config/cert.pem"
    assert config.workers.containerd.runtime.options["BinaryName"] == "runc"
    assert config.frontends.gateway.allowed_repositories == ("example.com",)
    assert config.system.max_registry_concurrency == 6
    assert config.history.max_age_s == 172800
    assert config.cache.gha.verify.required
    assert config.chantier.registries["yourmirror.local:5000"].connect_timeout_s == 1.5


def test_the_whole_file_has_every_key() -> None:
    """So that the test above keeps its name."""
    seen = {tuple(p for p in path if isinstance(p, str)) for path in line_map(WHOLE.read_text())}
    hosts = ("docker.io", "yourmirror.local:5000", "a.local", "b.local", "c.local", "*.corp.local")
    missing = [
        path
        for path in all_paths(Config)
        if not any(tuple(host if p == "HOST" else p for p in path) in seen for host in hosts)
        and tuple(p for p in path if p != "HOST") not in seen
    ]
    assert not missing


def test_warnings_name_deprecated_keys() -> None:
    config = parse('debug = true\n[registry."https://r.test"]\n[worker.oci]\ngckeepstorage = 5\n', "f")
    assert sorted(w.split(" ")[0] for w in config.warnings) == ["f:1:", "f:2:", "f:4:"]
    assert any("gckeepstorage is deprecated: use reservedSpace" in w for w in config.warnings)
    assert any("write the host without a scheme" in w for w in config.warnings)


def test_keys_match_without_case() -> None:
    assert parse("[worker.oci]\nGCKeepStorage = 5\n").worker_oci.gc_keep_storage == Size(bytes=5)


def test_round_trip() -> None:
    config = load(WHOLE)
    assert parse(dump(config)) == config
    assert dump(Config()) == ""
    odd = parse('root = "a\\"b\\\\c\\nd\\u0001é"\n[registry."r\\"x"]\nhttp = false\n[history]\nmaxAge = "1ms"\n')
    assert parse(dump(odd)) == odd
    empty_table = parse('[registry."r.test"]\n')
    assert "r.test" in parse(dump(empty_table)).registries


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ('"10GB"', 10 * 2**30), ('"1.5kb"', 1536), ('"5 MiB"', 5 * 2**20), ('"7t"', 7 * 2**40), ('"12"', 12), ('"3b"', 3)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse(f"[worker.oci]\nmaxUsedSpace = {text}\n").worker_oci.max_used_space == Size(bytes=size)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3600", 3600),
        ('"48h"', 172800),
        ('"1h30m"', 5400),
        ('"1.5h"', 5400),
        ('"250ms"', 0.25),
        ('"90"', 90),
        ('"2m0.5s"', 120.5),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse(f"[history]\nmaxAge = {text}\n").history.max_age_s == pytest.approx(seconds)


def test_percent_rounds_up_to_whole_gigabytes() -> None:
    assert Size(percent=10).of(100 * 2**30) == 11 * 10**9
    assert Size(percent=10).of(0) == 2 * 10**9
    assert Size(bytes=7).of(1) == 7


def test_default_gc_rules() -> None:
    rules = gc_rules(Config().worker_oci, 1000 * 2**30)
    assert len(rules) == 4
    assert rules[0].keep_duration_s == 48 * 3600
    assert rules[0].max_used_bytes == 512_000_000
    assert (rules[2].reserved_bytes, rules[2].max_used_bytes, rules[2].min_free_bytes) == (10 * 10**9, 100 * 10**9, 201 * 10**9)
    assert [r.all for r in rules] == [False, False, False, True]
    assert gc_rules(parse("[worker.oci]\ngc = false\n").worker_oci, 1) == ()
    kept = gc_rules(parse('[worker.oci]\ngckeepstorage = "1GB"\n').worker_oci, 1000 * 2**30)
    assert (kept[3].reserved_bytes, kept[3].max_used_bytes) == (2**30, 0)
    own = gc_rules(parse("[[worker.oci.gcpolicy]]\nkeepBytes = 5\nall = true\n").worker_oci, 1)
    assert own[0].reserved_bytes == 5
    assert own[0].all


def test_search_order(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path)}
    assert find(env, rootless=True) is None
    upstream = tmp_path / ".config/buildkit/buildkitd.toml"
    upstream.parent.mkdir(parents=True)
    upstream.touch()
    assert find(env, rootless=True) == upstream
    own = tmp_path / "xdg/chantier/chantierd.toml"
    own.parent.mkdir(parents=True)
    own.touch()
    assert find(env | {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}, rootless=True) == own
    assert find(env | {"CHANTIER_CONFIG": "/nowhere"}, rootless=True) == Path("/nowhere")
    assert find(env, rootless=False, etc=tmp_path / "xdg") == own
    assert find(env, rootless=False, etc=tmp_path / "none") is None


def test_discover(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('root = "/r"\n')
    assert discover({"CHANTIER_CONFIG": str(file)}).root == "/r"


def test_state_root() -> None:
    config = parse('root = "/from/config"\n')
    assert state_root(config, {"CHANTIER_ROOT": "/from/env"}) == Path("/from/env")
    assert state_root(config, {}) == Path("/from/config")
    assert state_root(Config(), {}, rootless=False) == Path("/var/lib/chantier")
    assert state_root(Config(), {"HOME": "/home/u"}, rootless=True) == Path("/home/u/.local/share/chantier")
    assert state_root(Config(), {"XDG_DATA_HOME": "/d"}, rootless=True) == Path("/d/chantier")
