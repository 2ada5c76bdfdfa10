# SPDX-License-Identifier: Apache-2.0
"""Where trees come from: images, directories of the client, git, files over HTTP, OCI layouts (protocol.md 1.4.5).

Attributes are written as the Go client writes them, each with the capability it needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Literal, Unpack

from chantier.errors import ReferenceError_, UsageError
from chantier.pb import ops_pb2 as pb
from chantier.spec import Reference
from chantier.values import dataclass, field

from . import caps as cap
from .constraints import Constraints, How, constraints
from .file import clean
from .git_url import GitUrl
from .state import State
from .vertex import Output, Writer

ResolveMode = Literal["default", "pull", "local", "never"]

# Only these run on, or hold, files of one platform; the same HTTP file is the same vertex for every platform.
_PLATFORM_SCHEMES = ("docker-image://", "oci-layout://")


@dataclass(frozen=True, eq=False)
class SourceVertex:
    identifier: str
    attrs: Mapping[str, str]
    caps: frozenset[str]
    how: Constraints
    problem: ReferenceError_ | None = field(default=None, repr=False)  # raised when marshalled, as the Go client does

    def inputs(self) -> Sequence[Output]:
        return ()

    def index(self, slot: object) -> int:
        return 0

    def write(self, op: pb.Op, writer: Writer) -> set[str]:
        if self.problem is not None:
            raise self.problem
        if not self.identifier:
            raise UsageError("source identifier can't be empty")
        attrs, caps = dict(self.attrs), set(self.caps)
        if self.identifier.startswith("local://") and "local.session" not in attrs:
            attrs["local.unique"] = writer.unique_id
            caps.add(cap.SOURCE_LOCAL_UNIQUE)
        if not self.identifier.startswith(_PLATFORM_SCHEMES):
            op.ClearField("platform")
        op.source.identifier = self.identifier
        for key, value in attrs.items():
            op.source.attrs[key] = value
        if not attrs:
            op.source.SetInParent()
        return caps


@dataclass(eq=False)
class _Attrs:
    """Attributes and the caps they need; empty values are left out."""

    values: dict[str, str] = field(default_factory=dict)
    caps: set[str] = field(default_factory=set)

    def put(self, key: str, value: str, needs: str | None = None) -> None:
        if value:
            self.values[key] = value
            if needs is not None:
                self.caps.add(needs)

    def state(self, identifier: str, how: How, problem: ReferenceError_ | None = None) -> State:
        made = constraints(how)
        vertex = SourceVertex(identifier, self.values, frozenset(self.caps), made, problem)
        return State().with_output(Output(vertex, None, made.platform))


def image(
    ref: str,
    *,
    resolve_mode: ResolveMode = "default",
    record_type: str = "",
    layer_limit: int | None = None,
    checksum: str = "",
    **how: Unpack[How],
) -> State:
    """An image's root file system. Its config is not looked at: use `with_image_config`, or a frontend."""
    attrs = _Attrs(caps={cap.SOURCE_IMAGE})
    problem: ReferenceError_ | None = None
    try:
        ref = str(Reference.parse(ref).with_default_tag())
    except ReferenceError_ as err:
        problem = err
    if resolve_mode != "default":
        # Only `pull` is a promise the engine must keep; the others may be ignored by an older one.
        attrs.put("image.resolvemode", resolve_mode, cap.SOURCE_IMAGE_RESOLVE_MODE if resolve_mode == "pull" else None)
    attrs.put("image.recordtype", record_type)
    if layer_limit is not None:
        attrs.put("image.layerlimit", str(layer_limit), cap.SOURCE_IMAGE_LAYER_LIMIT)
    attrs.put("image.checksum", checksum, cap.SOURCE_IMAGE_CHECKSUM)
    return attrs.state("docker-image://" + ref, how, problem)


def local(
    name: str,
    /,
    *,
    session: str = "",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    follow: Sequence[str] = (),
    shared_key: str = "",
    differ: Literal["", "none", "metadata"] = "",
    differ_required: bool = False,
    metadata_only: bool = False,
    metadata_exceptions: Sequence[str] = (),
    **how: Unpack[How],
) -> State:
    """A directory of the client. Patterns are those of .dockerignore."""
    attrs = _Attrs(caps={cap.SOURCE_LOCAL})
    attrs.put("local.session", session, cap.SOURCE_LOCAL_SESSION_ID)
    attrs.put("local.includepattern", _json(include), cap.SOURCE_LOCAL_INCLUDE)
    attrs.put("local.followpaths", _json(follow), cap.SOURCE_LOCAL_FOLLOW)
    attrs.put("local.excludepatterns", _json(exclude), cap.SOURCE_LOCAL_EXCLUDE)
    attrs.put("local.sharedkeyhint", shared_key, cap.SOURCE_LOCAL_SHARED_KEY)
    attrs.put("local.differ", differ, cap.SOURCE_LOCAL_DIFFER if differ_required else None)
    if metadata_only:
        attrs.put("local.metadatatransfer", "true", cap.SOURCE_LOCAL_METADATA)
        attrs.put("local.metadatatransferexclude", _json(metadata_exceptions))
    return attrs.state("local://" + name, how)


@dataclass(frozen=True, slots=True, kw_only=True)
class GitSignature:
    """What must have been signed by whom: the tag that is checked out if it is signed, else the commit.

    `keys` are armored OpenPGP public keys, one after another, or lines of SSH public keys. `require_signed_tag` takes nothing
    but a signed tag, `ignore_signed_tag` looks at the commit alone, `reject_expired` refuses keys that have expired since.
    """

    keys: str
    reject_expired: bool = False
    require_signed_tag: bool = False
    ignore_signed_tag: bool = False


def git(
    url: str,
    ref: str = "",
    *,
    subdir: str = "",
    keep_git_dir: bool = False,
    checksum: str = "",
    auth_token_secret: str | None = None,
    auth_header_secret: str | None = None,
    known_ssh_hosts: str = "",
    ssh: str = "",
    skip_submodules: bool = False,
    mtime: Literal["", "checkout", "commit"] = "",
    fetch_by_commit: bool = False,
    bundle: str = "",
    checkout_bundle: bool = False,
    signature: GitSignature | None = None,
    **how: Unpack[How],
) -> State:
    """A checkout. The identifier is the same for every protocol a repository is reached by; `git.fullurl` says how.

    Host keys of an ssh server are not asked for over the network: give `known_ssh_hosts`, or the engine finds them.
    """
    attrs = _Attrs(caps={cap.SOURCE_GIT})
    remote = GitUrl.parse(url) or GitUrl.parse("https://" + url)
    where = url
    if remote is not None:
        url = remote.remote
        where = remote.host + clean("/" + remote.path)
        subdir = clean("/" + subdir).lstrip("/")
        if ref or subdir:
            where += f"#{ref}" + (f":{subdir}" if subdir else "")
    attrs.put("git.keepgitdir", "true" if keep_git_dir else "", cap.SOURCE_GIT_KEEP_DIR)
    attrs.put("git.fullurl", url, cap.SOURCE_GIT_FULL_URL)
    attrs.put(
        "git.authtokensecret",
        "GIT_AUTH_TOKEN" if auth_token_secret is None else auth_token_secret,
        None if auth_token_secret is None else cap.SOURCE_GIT_HTTP_AUTH,
    )
    attrs.put(
        "git.authheadersecret",
        "GIT_AUTH_HEADER" if auth_header_secret is None else auth_header_secret,
        None if auth_header_secret is None else cap.SOURCE_GIT_HTTP_AUTH,
    )
    if remote is not None and remote.scheme == "ssh":
        attrs.put("git.knownsshhosts", known_ssh_hosts)
        attrs.caps.add(cap.SOURCE_GIT_KNOWN_HOSTS)
        attrs.put("git.mountsshsock", ssh or "default", cap.SOURCE_GIT_SSH_SOCK)
    attrs.put("git.checksum", checksum, cap.SOURCE_GIT_CHECKSUM)
    attrs.put("git.skipsubmodules", "true" if skip_submodules else "", cap.SOURCE_GIT_SKIP_SUBMODULES)
    attrs.put("git.mtime", mtime, cap.SOURCE_GIT_MTIME)
    attrs.put("git.fetchbycommit", "true" if fetch_by_commit else "", cap.SOURCE_GIT_FETCH_BY_COMMIT)
    attrs.put("git.bundle", bundle, cap.SOURCE_GIT_BUNDLE)
    attrs.put("git.checkoutbundle", "true" if checkout_bundle else "", cap.SOURCE_GIT_CHECKOUT_BUNDLE)
    if signature is not None:
        attrs.put("git.sig.pubkey", signature.keys, cap.SOURCE_GIT_SIGNATURE)
        attrs.put("git.sig.rejectexpired", "true" if signature.reject_expired else "", cap.SOURCE_GIT_SIGNATURE)
        attrs.put("git.sig.requiresignedtag", "true" if signature.require_signed_tag else "", cap.SOURCE_GIT_SIGNATURE)
        attrs.put("git.sig.ignoresignedtag", "true" if signature.ignore_signed_tag else "", cap.SOURCE_GIT_SIGNATURE)
    return attrs.state("git://" + where, how)


def http(
    url: str,
    *,
    checksum: str = "",
    filename: str = "",
    mode: int = 0,
    uid: int = 0,
    gid: int = 0,
    auth_header_secret: str = "",
    accept: str = "",
    user_agent: str = "",
    keys: str = "",
    signature: str = "",
    **how: Unpack[How],
) -> State:
    """One file from a URL, named `filename` or as the server or the URL names it.

    `signature` is an armored, detached OpenPGP signature of the file, `keys` are armored public keys of who may have made it.
    """
    attrs = _Attrs(caps={cap.SOURCE_HTTP})
    attrs.put("http.checksum", checksum, cap.SOURCE_HTTP_CHECKSUM)
    attrs.put("http.filename", filename)
    attrs.put("http.perm", f"0{mode:o}" if mode else "", cap.SOURCE_HTTP_PERM)
    attrs.put("http.uid", str(uid) if uid else "", cap.SOURCE_HTTP_UID_GID)
    attrs.put("http.gid", str(gid) if gid else "", cap.SOURCE_HTTP_UID_GID)
    attrs.put("http.authheadersecret", auth_header_secret, cap.SOURCE_HTTP_AUTH)
    attrs.put("http.header.accept", accept, cap.SOURCE_HTTP_HEADER)
    attrs.put("http.header.user-agent", user_agent, cap.SOURCE_HTTP_HEADER)
    attrs.put("http.sig.pubkey", keys, cap.SOURCE_HTTP_SIGNATURE)
    attrs.put("http.sig.signature", signature, cap.SOURCE_HTTP_SIGNATURE)
    return attrs.state(url, how)


def oci_layout(ref: str, *, session: str = "", store: str = "", layer_limit: int | None = None, **how: Unpack[How]) -> State:
    """An image of a content store of the client; `ref` carries a digest."""
    attrs = _Attrs(caps={cap.SOURCE_OCI_LAYOUT})
    attrs.put("oci.session", session)
    attrs.put("oci.store", store)
    if layer_limit is not None:
        attrs.put("oci.layerlimit", str(layer_limit))
    return attrs.state("oci-layout://" + ref, how)


def image_blob(ref: str, *, filename: str = "", mode: int = 0, uid: int = 0, gid: int = 0, **how: Unpack[How]) -> State:
    """One blob of a registry as a file; `ref` has a digest and no tag. Without `filename` the file is named by its digest."""
    return _blob("docker-image+blob", ref, _file_attrs(filename, mode, uid, gid), how)


def oci_layout_blob(
    ref: str,
    *,
    store: str,
    session: str = "",
    filename: str = "",
    mode: int = 0,
    uid: int = 0,
    gid: int = 0,
    **how: Unpack[How],
) -> State:
    """One blob of a content store of the client as a file; `ref` has a digest and no tag."""
    attrs = _file_attrs(filename, mode, uid, gid)
    attrs.put("oci.session", session)
    attrs.put("oci.store", store)
    return _blob("oci-layout+blob", ref, attrs, how)


def _file_attrs(filename: str, mode: int, uid: int, gid: int) -> _Attrs:
    attrs = _Attrs(caps={cap.SOURCE_IMAGE_BLOB})
    attrs.put("http.filename", filename)
    attrs.put("http.perm", f"0{mode:o}" if mode else "")
    attrs.put("http.uid", str(uid) if uid else "")
    attrs.put("http.gid", str(gid) if gid else "")
    return attrs


def _blob(scheme: str, ref: str, attrs: _Attrs, how: How) -> State:
    parsed = Reference.parse(ref)
    if parsed.tag:
        raise UsageError("tagged image reference not allowed for blob reference")
    if not parsed.digest:
        raise UsageError("checksum required in blob reference")
    return attrs.state(f"{scheme}://{parsed}", how)


def _json(values: Sequence[str]) -> str:
    """Go's json.Marshal of a []string, "" for none."""
    from chantier.spec import dumps

    return dumps(list(values)).decode() if values else ""


def parse_list(value: str) -> tuple[str, ...]:
    """The inverse: the list in an attribute. Raises UsageError."""
    try:
        made = json.loads(value)
    except ValueError as err:
        raise UsageError(f"invalid list {value!r}: {err}") from None
    if not isinstance(made, list) or not all(isinstance(x, str) for x in made):
        raise UsageError(f"invalid list {value!r}: want a JSON array of strings")
    return tuple(made)


__all__ = [
    "GitSignature",
    "ResolveMode",
    "SourceVertex",
    "git",
    "http",
    "image",
    "image_blob",
    "local",
    "oci_layout",
    "oci_layout_blob",
    "parse_list",
]
