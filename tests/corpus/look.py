# SPDX-License-Identifier: Apache-2.0
"""What a build gave, as a value that two builders can be compared by: configs, histories, layers, or how it failed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

_KINDS = {tarfile.REGTYPE: "file", tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "link", tarfile.LNKTYPE: "hardlink"}
# What older BuildKits leave of git where nobody asked for it: files that point into their own store, directories of contexts.
_GIT = re.compile(r"(^|/)\.git(/|$)")
_BASE = "bin/busybox"  # the layer of the base image holds it: that one is not looked at


def images(path: Path, *, times: bool) -> dict[str, Any]:
    """Platform -> config, history and layers of an OCI layout in a tar."""
    with tarfile.open(path) as tar:

        def blob(digest: str) -> bytes:
            file = tar.extractfile("blobs/" + digest.replace(":", "/"))
            assert file is not None
            return file.read()

        file = tar.extractfile("index.json")
        assert file is not None
        found: dict[str, Any] = {}
        waiting = list(json.load(file)["manifests"])
        while waiting:
            descriptor = waiting.pop()
            document = json.loads(blob(descriptor["digest"]))
            if "manifests" in document:
                waiting += document["manifests"]
                continue
            config = json.loads(blob(document["config"]["digest"]))
            platform = "/".join(filter(None, (config.get("os"), config.get("architecture"), config.get("variant"))))
            layers = [_layer(blob(layer["digest"]), times=times) for layer in document["layers"] or []]
            found[platform] = {
                "config": {k: v for k, v in sorted((config.get("config") or {}).items()) if k != "ArgsEscaped"},
                "history": [
                    h.get("created_by", "") + (" (empty)" if h.get("empty_layer") else "")
                    for h in config.get("history") or []
                    if h.get("comment") == "buildkit.dockerfile.v0"
                ],
                "layers": ["base" if any(_BASE in entry for entry in layer) else layer for layer in layers],
            }
    return found


def _layer(data: bytes, *, times: bool) -> list[str]:
    """One line an entry, sorted."""
    lines = []
    plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        for entry in tar:
            kind = _KINDS.get(entry.type, "special")
            line = f"{entry.name.removeprefix('./').rstrip('/')} {kind} {entry.mode:o} {entry.uid}:{entry.gid}"
            if entry.issym() or entry.islnk():
                line += f" -> {entry.linkname}"
            file = tar.extractfile(entry) if entry.isreg() else None
            if file is not None:
                line += " " + hashlib.sha256(file.read()).hexdigest()[:12]
                if times:
                    line += f" @{int(entry.mtime)}"
            if not _GIT.search(entry.name):
                lines.append(line)
    return sorted(lines)


def failure(stderr: str) -> str:
    """The last ERROR line, without what changes from one run to the next."""
    lines = [line for line in stderr.splitlines() if line.startswith("ERROR: ")]
    text = lines[-1] if lines else ""
    text = re.sub(r"^ERROR: (failed to build: )?(failed to solve: )?", "", text)
    text = re.sub(r"ref [a-z0-9]{25}::[a-z0-9]{25}", "ref REF", text)
    text = re.sub(r"/[^ ]*/buildkit-mount\d+/", "/", text)  # where the engine had mounted a tree
    text = re.sub(r"(failed to fetch remote [^ ]+): git .*", r"\1", text)
    return re.sub(r", stderr:.*|stdout:.*|output: .*", "", text)


__all__ = ["failure", "images"]
