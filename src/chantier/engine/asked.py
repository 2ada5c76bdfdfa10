# SPDX-License-Identifier: Apache-2.0
"""Who asked for what: a frontend's request, what it solved and looked up on the way, and the frontends it called in turn.

A provenance names the request that led to its result, and is made of all that this request needed: the graph of the result,
what was solved to read from it (the Dockerfile, .dockerignore), images whose config was looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from chantier.errors import UsageError
from chantier.llb.git_url import GitRef
from chantier.pb import ops_pb2 as pb
from chantier.spec.purl import redacted
from chantier.values import dataclass, field

from .materials import ImageSource, Materials
from .producers import Producers

if TYPE_CHECKING:
    from .bridge import EngineRef

_HOST_SPECIFIC = frozenset({"cgroup-parent", "image-resolve-mode", "platform", "cache-imports"})


@dataclass(kw_only=True, eq=False)
class Asked:
    """`frontend` is "" where a client drives the build itself: it has asked nothing of a frontend then."""

    frontend: str = ""
    attrs: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, pb.Definition] = field(default_factory=dict)
    above: Asked | None = None
    producers: Producers | None = None
    images: list[ImageSource] = field(default_factory=list)
    refs: list[EngineRef] = field(default_factory=list)
    below: list[Asked] = field(default_factory=list)

    def call(self, frontend: str, attrs: Mapping[str, str], inputs: Mapping[str, pb.Definition]) -> Asked:
        """A frontend that is asked from here."""
        made = Asked(frontend=frontend, attrs=attrs, inputs=inputs, above=self, producers=self.producers)
        self.below.append(made)
        return made

    def find(self, ref: object) -> Asked | None:
        """Who had this reference made, the innermost."""
        for one in self.below:
            found = one.find(ref)
            if found is not None:
                return found
        return self if any(one is ref for one in self.refs) else None

    def all_refs(self) -> Iterator[EngineRef]:
        yield from self.refs
        for one in self.below:
            yield from one.all_refs()

    def all_images(self) -> Iterator[ImageSource]:
        yield from self.images
        for one in self.below:
            yield from one.all_images()

    def request(self, materials: Materials) -> dict[str, Any]:
        """`{configSource, request}`: also of what the client asked of the whole build, where that is another request.

        Of a client that drives the build itself both are empty: it has asked nothing of a frontend.
        """
        top = self.top
        if self is top:
            return {"configSource": {}, "request": {}}
        made, root = self._own(materials), top._own(materials)
        if root["request"] and root != made:
            made["request"]["root"] = root
        return made

    def _own(self, materials: Materials) -> dict[str, Any]:
        made = request_of(self.frontend, self.attrs, materials)
        inputs = self.producers.of(self.inputs) if self.producers is not None else {}
        if inputs:
            made["request"]["inputs"] = inputs
        return made

    @property
    def top(self) -> Asked:
        """What the client asked of the whole build."""
        return self if self.above is None else self.above.top


def request_of(frontend: str, attrs: Mapping[str, str], materials: Materials) -> dict[str, Any]:
    """SLSA v1 externalParameters of one request: the config source, and what was asked with it. Nothing of this host is in it."""
    args = {key: redacted(value) for key, value in attrs.items() if key not in _HOST_SPECIFIC and not key.startswith("attest:")}
    key = args.get("contextkey") or ("input:context" if args.get("input:context") else "context")
    source: dict[str, Any] = {}
    if context := args.pop(key, ""):
        source = _config_source(context, materials)
    if path := args.pop("filename", ""):
        source["path"] = path
    request: dict[str, Any] = {"frontend": frontend} if frontend else {}
    if args:
        request["args"] = dict(sorted(args.items()))
    return {"configSource": source, "request": request}


def _config_source(context: str, materials: Materials) -> dict[str, Any]:
    """A context of git or of the web comes with what it was pinned to."""
    if context in materials.http:
        algorithm, _, value = materials.http[context].partition(":")
        return {"uri": context, "digest": {algorithm: value}}
    try:
        git = GitRef.parse(context)
    except UsageError:
        git = None
    if git is not None:
        address = ("https://" if git.like_local else "") + git.remote
        commit = materials.git.get(address + (f"#{git.ref}" if git.ref else ""))
        if commit is not None:
            place = f"#{git.ref}" + (f":{git.subdir}" if git.subdir else "") if git.ref or git.subdir else ""
            return {"uri": git.remote + place, "digest": {"sha256" if len(commit) == 64 else "sha1": commit}}
    return {"uri": context}


__all__ = ["Asked", "request_of"]
