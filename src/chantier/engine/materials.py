# SPDX-License-Identifier: Apache-2.0
"""What went into a result: its sources with what they were pinned to, the ids of secrets, whether the network was there.

It is read off the graph of a reference while the build's job lives: sources know then what they found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from chantier.errors import ReferenceError_
from chantier.llb.definition import LoadedVertex, platform_of
from chantier.pb import ops_pb2 as pb
from chantier.spec import Platform, Reference
from chantier.spec.purl import package_url, redacted
from chantier.values import dataclass, field

if TYPE_CHECKING:
    from chantier.solver.vertex import ActiveVertex


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """`digest` is what the reference names: an index or a manifest. `local`: of an OCI layout."""

    ref: Reference
    platform: Platform | None
    digest: str
    local: bool = False

    @property
    def tagged(self) -> str:
        return f"{self.ref.name}:{self.ref.tag or 'latest'}"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class BlobSource:
    """A single blob; `local`: of an OCI layout. `bundle` is the address of the repository whose git bundle it is."""

    name: str
    digest: str
    local: bool
    bundle: str = ""

    def described(self) -> dict[str, Any]:
        ref = Reference.parse(self.name).with_digest(self.digest)
        kind = "oci" if self.local else "docker"
        if self.bundle:
            return _described(package_url(ref, kind=kind, ref_type="bundle", vcs_url=self.bundle), self.digest)
        return _described(package_url(ref, kind=kind, ref_type="blob"), self.digest)


@dataclass(kw_only=True)
class Materials:
    """Collected by `add` and `merge`; every kind is listed by name. Ids of secrets and agents come with whether they are optional."""

    images: list[ImageSource] = field(default_factory=list)
    blobs: set[BlobSource] = field(default_factory=set)
    git: dict[str, str] = field(default_factory=dict)  # address with its ref -> commit
    http: dict[str, str] = field(default_factory=dict)  # address -> digest
    locals: set[str] = field(default_factory=set)
    secrets: dict[str, bool] = field(default_factory=dict)
    ssh: dict[str, bool] = field(default_factory=dict)
    network: bool = False
    incomplete: bool = False  # something was used that could not be listed

    def add(self, vertex: LoadedVertex, pin: str) -> None:
        """One operation; `pin` is what its source was pinned to ("" for operations that are no sources)."""
        kind = vertex.op.WhichOneof("op")
        if kind == "source":
            self._add_source(vertex, pin)
        elif kind == "exec":
            self._add_exec(vertex.op.exec)
        elif kind == "build":
            self.incomplete = True  # the graph inside it is not known here

    def add_image(self, image: ImageSource) -> None:
        same = (image.ref, image.local, image.platform)
        if all((known.ref, known.local, known.platform) != same for known in self.images):
            self.images.append(image)

    def merge(self, other: Materials) -> None:
        for image in other.images:
            self.add_image(image)
        self.blobs |= other.blobs
        self.git = {**other.git, **self.git}
        self.http = {**other.http, **self.http}
        self.locals |= other.locals
        for id, optional in other.secrets.items():
            _note(self.secrets, id, optional)
        for id, optional in other.ssh.items():
            _note(self.ssh, id, optional)
        self.network |= other.network
        self.incomplete |= other.incomplete

    @property
    def complete(self) -> bool:
        return not self.incomplete and not self.locals

    def listed(self) -> list[dict[str, Any]]:
        """Resource descriptors (SLSA v1, `resolvedDependencies`): images, blobs, git, web. Local files have no name for others."""
        return [
            *(_image(one) for one in sorted(self._named_images(), key=lambda one: str(one.ref))),
            *(blob.described() for blob in sorted(self.blobs) if not blob.bundle),
            *self._listed_git(),
            *(_described(url, self.http[url]) for url in sorted(self.http)),
        ]

    def _listed_git(self) -> Iterator[dict[str, Any]]:
        """A repository that was read from a bundle is followed by the bundle."""
        for url in sorted(self.git):
            yield {"uri": url, "digest": _commit(self.git[url])}
            yield from (blob.described() for blob in sorted(self.blobs) if blob.bundle == url)

    def _named_images(self) -> list[ImageSource]:
        """Without those named by their digest whose name somebody also asked for: it says where the digest comes from."""
        asked = {image.tagged for image in self.images if not image.ref.digest}
        return [image for image in self.images if not image.ref.digest or image.tagged not in asked]

    def _add_source(self, vertex: LoadedVertex, pin: str) -> None:
        source = vertex.op.source
        scheme, _, rest = source.identifier.partition("://")
        if scheme == "local":
            self.locals.add(rest)
        elif scheme in ("http", "https"):
            self.http.setdefault(redacted(source.identifier), pin)
        elif scheme == "git":
            self._add_git(source, rest, pin)
        elif scheme in ("docker-image", "oci-layout"):
            ref = parsed(rest)
            if ref is not None:
                self.add_image(
                    ImageSource(ref=ref, platform=platform_of(vertex.op), digest=pin or ref.digest, local=scheme == "oci-layout")
                )
        elif scheme in ("docker-image+blob", "oci-layout+blob"):
            self._add_blob(source.identifier)
        else:
            self.incomplete = True

    def _add_blob(self, locator: str, bundle: str = "") -> None:
        scheme, _, rest = locator.partition("://")
        ref = parsed(rest)
        if ref is None:
            self.incomplete = True
            return
        self.blobs.add(BlobSource(name=ref.name, digest=ref.digest, local=scheme == "oci-layout+blob", bundle=bundle))

    def _add_git(self, source: pb.SourceOp, rest: str, pin: str) -> None:
        address, _, fragment = rest.partition("#")
        ref = fragment.partition(":")[0]
        remote = source.attrs.get("git.fullurl") or f"https://{address}"
        url = redacted(remote) + (f"#{ref}" if ref else "")
        self.git.setdefault(url, pin)
        if source.attrs.get("git.bundle"):
            self._add_blob(source.attrs["git.bundle"], bundle=url)
        for name in ("git.authtokensecret", "git.authheadersecret"):
            if source.attrs.get(name):
                _note(self.secrets, source.attrs[name], True)
        if source.attrs.get("git.mountsshsock"):
            _note(self.ssh, source.attrs["git.mountsshsock"], True)

    def _add_exec(self, op: pb.ExecOp) -> None:
        for mount in op.mounts:
            if mount.mountType == pb.MountType.SECRET:
                _note(self.secrets, mount.secretOpt.ID, mount.secretOpt.optional)
            elif mount.mountType == pb.MountType.SSH:
                _note(self.ssh, mount.SSHOpt.ID or "default", mount.SSHOpt.optional)
        for secret in op.secretenv:
            _note(self.secrets, secret.ID, secret.optional)
        self.network |= op.network != pb.NetMode.NONE


def materials_of(vertices: Iterable[LoadedVertex], active: Mapping[str, ActiveVertex]) -> Materials:
    """Of a whole graph. `active` are the job's vertices by the digest they were loaded with."""
    found = Materials()
    for vertex in vertices:
        source = active.get(vertex.digest) if vertex.op.WhichOneof("op") == "source" else None
        found.add(vertex, str(getattr(source.op, "pin", "")) if source is not None else "")
    return found


def parsed(text: str) -> Reference | None:
    try:
        return Reference.parse(text)
    except ReferenceError_:
        return None


def _image(image: ImageSource) -> dict[str, Any]:
    uri = package_url(image.ref, image.platform, kind="oci" if image.local else "docker")
    return _described(uri, image.digest)


def _described(uri: str, digest: str) -> dict[str, Any]:
    algorithm, _, value = digest.partition(":")
    return {"uri": uri, "digest": {algorithm: value}} if value else {"uri": uri}


def _commit(sha: str) -> dict[str, str]:
    return {"sha256" if len(sha) == 64 else "sha1": sha}


def _note(known: dict[str, bool], id: str, optional: bool) -> None:
    known[id] = known.get(id, True) and optional


__all__ = ["ImageSource", "Materials", "materials_of", "parsed"]
