# SPDX-License-Identifier: Apache-2.0
"""What a provenance says of requests and materials. Expected values are protocol.md 8.3's."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chantier.dockerfile.attests import attestation_options
from chantier.engine.asked import Asked, request_of
from chantier.engine.environment import load_environment
from chantier.engine.llb_json import source_of, steps_of
from chantier.engine.materials import ImageSource, Materials, materials_of
from chantier.engine.provenance import Facts, ProvenanceOptions, predicate, with_graph
from chantier.engine.secrecy import open_predicate
from chantier.errors import ConfigError, UsageError
from chantier.llb import git, http, image, image_blob, local, oci_layout_blob, scratch
from chantier.llb.definition import load
from chantier.llb.run import Mount, Secret, Ssh
from chantier.spec import Platform, Reference

DIGEST = "sha256:" + "ab" * 32
HOST = Platform("linux", "amd64")


def pins(graph: Any) -> dict[str, Any]:
    """Sources as they are once they know what they found."""
    found = {"docker-image": DIGEST, "https": "sha256:" + "cd" * 32, "git": "e" * 40}
    return {
        digest: SimpleNamespace(op=SimpleNamespace(pin=found.get(vertex.op.source.identifier.partition("://")[0], "")))
        for digest, vertex in graph.vertices.items()
        if vertex.op.WhichOneof("op") == "source"
    }


def materials(state: Any) -> Materials:
    graph = load(state.marshal(HOST))
    return materials_of(graph.vertices.values(), pins(graph))


def test_single_blobs_are_materials() -> None:
    blob = image_blob(f"reg.test/me/blobs@{DIGEST}")
    found = materials(scratch().copy(blob, "/", "/a").copy(oci_layout_blob(f"not/real@{DIGEST}", store="s"), "/", "/b"))
    assert found.listed() == [
        {"uri": f"pkg:oci/not/real?digest={DIGEST}&ref_type=blob", "digest": {"sha256": "ab" * 32}},
        {"uri": f"pkg:docker/reg.test/me/blobs?digest={DIGEST}&ref_type=blob", "digest": {"sha256": "ab" * 32}},
    ]
    assert found.complete


def test_sources_with_what_they_were_pinned_to() -> None:
    base = image("docker.io/library/alpine:3")
    state = (
        base.copy(git("https://me:pass@h.test/a.git", "v1", subdir="sub"), "/", "/a")
        .copy(http("https://me:pass@h.test/f", filename="f"), "/f", "/f")
        .copy(local("context"), "/", "/c")
    )
    found = materials(state)
    assert found.listed() == [
        {"uri": "pkg:docker/alpine@3?platform=linux%2Famd64", "digest": {"sha256": "ab" * 32}},
        {"uri": "https://xxxxx:xxxxx@h.test/a.git#v1", "digest": {"sha1": "e" * 40}},
        {"uri": "https://xxxxx:xxxxx@h.test/f", "digest": {"sha256": "cd" * 32}},
    ]
    assert found.locals == {"context"}
    assert not found.complete
    assert not found.network


def test_secrets_agents_and_the_network_of_steps() -> None:
    state = image("alpine").run(
        "true",
        secrets=[Secret(id="a", env="A"), Secret(id="b", target="/b", optional=True)],
        ssh=[Ssh(id="", optional=True)],
    )
    found = materials(state)
    assert found.secrets == {"a": False, "b": True}
    assert found.ssh == {"default": True}
    assert found.network
    assert found.complete
    assert not materials(image("alpine").run("true", network="none")).network


def test_a_pinned_image_that_was_asked_for_by_its_tag_is_named_by_it() -> None:
    found = materials(image(f"docker.io/library/alpine:3@{DIGEST}"))
    assert found.listed()[0]["uri"] == f"pkg:docker/alpine@3?digest={DIGEST}&platform=linux%2Famd64"
    found.add_image(ImageSource(ref=Reference.parse("alpine:3"), platform=HOST, digest=DIGEST))
    assert [one["uri"] for one in found.listed()] == ["pkg:docker/alpine@3?platform=linux%2Famd64"]


def test_requests_tell_nothing_of_the_host() -> None:
    attrs = {
        "attest:provenance": "x", "cgroup-parent": "/a", "image-resolve-mode": "pull", "platform": "linux/amd64",
        "cache-imports": "[]", "target": "t", "filename": "D", "context:n": "https://a:b@h.test/x",
    }  # fmt: skip
    assert request_of("dockerfile.v0", attrs, Materials()) == {
        "configSource": {"path": "D"},
        "request": {"frontend": "dockerfile.v0", "args": {"target": "t", "context:n": "https://xxxxx:xxxxx@h.test/x"}},
    }


@pytest.mark.parametrize(
    ("context", "uri", "digest"),
    [
        ("https://h.test/a.git#v1:src", "https://h.test/a.git#v1:src", {"sha1": "e" * 40}),
        ("https://me:pass@h.test/b.git", "https://xxxxx:xxxxx@h.test/b.git", {"sha256": "f" * 64}),
        ("https://h.test/f.tar", "https://h.test/f.tar", {"sha256": "cd" * 32}),
        ("https://other.test/c.git", "https://other.test/c.git", None),
    ],
)
def test_contexts_from_elsewhere_are_the_config_source(context: str, uri: str, digest: dict[str, str] | None) -> None:
    known = Materials()
    known.git = {"https://h.test/a.git#v1": "e" * 40, "https://xxxxx:xxxxx@h.test/b.git": "f" * 64}
    known.http = {"https://h.test/f.tar": "sha256:" + "cd" * 32}
    source = request_of("dockerfile.v0", {"context": context}, known)["configSource"]
    assert source == {"uri": uri} | ({"digest": digest} if digest else {})


def made(mode: str, **attrs: str) -> dict[str, Any]:
    top = Asked(frontend="dockerfile.v0", attrs={"build-arg:A": "1", "label:l": "2", "target": "t", **attrs})
    known = Materials(locals={"context"}, secrets={"s": False}, ssh={"default": True})
    return predicate(
        top.call(top.frontend, top.attrs, {}),
        known,
        ProvenanceOptions.parse({"mode": mode}),
        Facts(ref="r", started=1, completed=2),
    )


def test_min_leaves_arguments_labels_and_secrets_out() -> None:
    whole, least = (made(mode)["buildDefinition"]["externalParameters"]["request"] for mode in ("max", "min"))
    assert whole["args"] == {"build-arg:A": "1", "label:l": "2", "target": "t"}
    assert whole["secrets"] == [{"id": "s"}]
    assert whole["ssh"] == [{"id": "default", "optional": True}]
    assert least["args"] == {"target": "t"}
    assert "secrets" not in least and "ssh" not in least
    assert least["locals"] == [{"name": "context"}]
    assert "root" not in whole
    complete = [made(mode)["runDetails"]["metadata"]["buildkit_completeness"] for mode in ("max", "min")]
    assert complete == [
        {"request": True, "resolvedDependencies": False}, {"request": False, "resolvedDependencies": False},
    ]  # fmt: skip


def test_what_is_known_of_the_checkout() -> None:
    told = made("max", **{"vcs:source": "https://a:b@h.test/r.git", "vcs:revision": "123", "vcs:localdir:context": ""})
    assert told["runDetails"]["metadata"]["buildkit_metadata"]["vcs"] == {
        "revision": "123", "source": "https://xxxxx:xxxxx@h.test/r.git",
    }  # fmt: skip
    assert not any(key.startswith("vcs:") for key in told["buildDefinition"]["externalParameters"]["request"]["args"])


def test_hermetic_is_what_is_complete_and_had_no_network() -> None:
    def told(known: Materials) -> Any:
        metadata = predicate(Asked(), known, ProvenanceOptions(), Facts(ref="r", started=1, completed=2))["runDetails"][
            "metadata"
        ]
        return metadata.get("buildkit_hermetic", False), metadata["buildkit_completeness"]

    assert told(Materials()) == (True, {"request": False, "resolvedDependencies": True})
    assert told(Materials(network=True))[0] is False
    assert told(Materials(incomplete=True)) == (False, {"request": False, "resolvedDependencies": False})


def test_a_frontend_that_another_request_called_names_that_one() -> None:
    top = Asked(attrs={"root-request": "v", "attest:provenance": "mode=max"})
    request = top.call("dockerfile.v0", {"target": "final"}, {}).request(Materials())["request"]
    assert request["args"] == {"target": "final"}
    assert request["root"] == {"configSource": {}, "request": {"args": {"root-request": "v"}}}


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"mode": "all"}, 'invalid mode "all"'),
        ({"version": "v2"}, "invalid provenance SLSA version: v2"),
        ({"reproducible": "perhaps"}, "reproducible"),
        ({"complete-materials": "perhaps"}, "complete-materials"),
    ],
)
def test_options_that_cannot_be_meant(attrs: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ProvenanceOptions.parse(attrs)


def test_attestations_are_asked_for_by_options_and_arguments() -> None:
    found = attestation_options(
        {"attest:provenance": "type=provenance,mode=min", "build-arg:BUILDKIT_ATTEST_SBOM": 'a=b,"c=d,e"'}
    )
    assert found == {"provenance": {"type": "provenance", "mode": "min"}, "sbom": {"a": "b", "c": "d,e"}}
    assert attestation_options({"attest:provenance": "disabled=true", "target": "x"}) == {}
    with pytest.raises(UsageError, match='unknown attestation type "other"'):
        attestation_options({"attest:other": ""})


def test_steps_are_numbered_with_inputs_first() -> None:
    state = image("alpine").run("echo hi", env={"API_TOKEN": "hunter2", "A": "1"}).copy(local("context"), "f", "/f")
    definition = state.marshal(HOST)
    steps = steps_of(definition)
    assert [step["id"] for step in steps.steps] == [f"step{n}" for n in range(len(steps.steps))]
    assert sorted(steps.mapping.values()) == sorted(step["id"] for step in steps.steps)
    kinds = [next(iter(step["op"]["Op"]), "") for step in steps.steps]
    assert kinds == ["source", "exec", "source", "file", ""]
    assert steps.steps[3]["inputs"] == ["step1:0", "step2:0"]
    assert source_of(definition, steps) is None
    told = with_graph(made("max"), steps.config(), None, {"step0:0": []})
    text = json.dumps(open_predicate(told))
    assert "hunter2" not in text
    assert "A=1" in text
    assert steps_of(scratch().marshal(HOST)).config() == {}


def test_addresses_in_steps_have_no_passwords() -> None:
    state = scratch().copy(git("https://me:pass@h.test/a.git", "v1"), "/", "/")
    assert "pass" not in json.dumps(steps_of(state.marshal(HOST)).config())


def test_the_owner_of_an_engine_adds_to_the_environment(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"foo": "bar", "n": 1}')
    (tmp_path / "b.json").write_text('{"n": [1, 2]}')
    (tmp_path / "c.txt").write_text("no")
    assert load_environment(str(tmp_path)) == {"foo": "bar", "n": [1, 2]}
    assert load_environment(str(tmp_path / "none")) == {}
    (tmp_path / "d.json").write_text('{"buildConfig": 1}')
    with pytest.raises(ConfigError, match='key "buildConfig" is builtin'):
        load_environment(str(tmp_path))
    (tmp_path / "d.json").write_text("[]")
    with pytest.raises(ConfigError, match="want a JSON object"):
        load_environment(str(tmp_path))


def test_mounts_of_steps_are_listed_too() -> None:
    state = image("alpine").run("true", mounts=[Mount(target="/m", source=local("other"))], network="none")
    assert materials(state).locals == {"other"}
