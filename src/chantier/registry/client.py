# SPDX-License-Identifier: Apache-2.0
"""`Registry`: what one build may ask of registries."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from chantier.errors import IntegrityError, NotFoundError, RegistryError
from chantier.spec import Descriptor, Digest, Reference, descriptor_from_json, digest_of

from .fetch import fetch
from .hosts import Capability, Host
from .limits import is_metadata
from .manifests import MANIFEST_LIMIT, get_manifest, resolve
from .messages import Body
from .push import Pusher
from .types import BlobWriter, Cancelled, CredentialsFor, Fetched, MemoryWriter, Resolved, Served, TokenFor, anonymous, never

if TYPE_CHECKING:
    from .shared import Registries, Settings

_NONE: Mapping[str, object] = MappingProxyType({})
OFFLINE_HINT = "build once with --pull=missing, or give the image as an OCI layout: --build-context NAME=oci-layout://DIR"


class Registry:
    """Made by `Registries.open`. Thread-safe; holds nothing that must be closed."""

    def __init__(
        self,
        shared: Registries,
        settings: Settings,
        *,
        credentials: CredentialsFor = anonymous,
        token: TokenFor | None = None,
        owner: str = "",
        insecure: bool = False,
        offline: bool = False,
        fields: Mapping[str, object] = _NONE,
    ) -> None:
        self._shared = shared
        self._settings = settings
        self._credentials = credentials
        self._token = token
        self._owner = owner
        self._insecure = insecure
        self._offline = offline
        self._fields = fields
        self._caller = shared.caller(settings, credentials, token, owner, fields)

    def insecure(self) -> Registry:
        """The same build's view for the exporter option registry.insecure: TLS unverified, or plain HTTP."""
        return Registry(
            self._shared,
            self._settings,
            credentials=self._credentials,
            token=self._token,
            owner=self._owner,
            insecure=True,
            offline=self._offline,
            fields=self._fields,
        )

    def hosts(self, ref: Reference, capability: Capability = Capability.PULL) -> tuple[Host, ...]:
        """Who would be asked, in order."""
        return tuple(h for h in self.all_hosts(ref) if capability in h.capabilities)

    def all_hosts(self, ref: Reference) -> tuple[Host, ...]:
        """The mirrors and the registry itself, whatever they may be asked for."""
        return self._settings.hosts(ref.domain, insecure=self._insecure)

    def _hosts(self, ref: Reference, capability: Capability) -> tuple[Host, ...]:
        if self._offline and capability is not Capability.PUSH:
            raise NotFoundError(f"{ref} is not all here, and pull mode never forbids to ask a registry", hint=OFFLINE_HINT)
        found = self.hosts(ref, capability)
        if not found:
            doing = {Capability.PULL: "pull", Capability.RESOLVE: "resolve", Capability.PUSH: "push"}[capability]
            raise RegistryError(
                f"cannot {doing} {ref}: the config leaves no host to ask",
                host=ref.domain,
                hint=f'see `only` and `capabilities` in [chantier.registry."{ref.domain}"], and its mirrors',
            )
        return found

    def resolve(self, ref: Reference, *, cancelled: Cancelled = never) -> Resolved:
        """What `ref` (tag or digest, default `latest`) names now.

        Raises NotFoundError `REF: not found`, UnauthorizedError, RateLimitedError, RegistryError: that of the host whose
        answer tells most, with all hosts in its detail.
        """
        return resolve(self._caller, self._hosts(ref, Capability.RESOLVE), ref, cancelled)

    def manifest(self, ref: Reference, what: Descriptor | str, *, cancelled: Cancelled = never) -> tuple[bytes, str]:
        """The bytes of a manifest or index and its media type, by digest or descriptor; checked. Raises as `resolve`."""
        began = time.monotonic()
        with self._place(ref, metadata=True, cancelled=cancelled):
            data, media_type, host = get_manifest(self._caller, self._hosts(ref, Capability.PULL), ref, what, cancelled)
        digest = what.digest if isinstance(what, Descriptor) else what
        self._served(ref, digest, media_type, Fetched(host=host.name, received=len(data), seconds=time.monotonic() - began))
        return data, media_type

    def fetch_blob(
        self,
        ref: Reference,
        descriptor: Descriptor,
        writer: BlobWriter,
        *,
        on_bytes: Callable[[int], None] | None = None,
        cancelled: Cancelled = never,
    ) -> Fetched:
        """Bring a blob into `writer`, from its offset on; when this returns, digest and size are right.

        `on_bytes` is told the offset reached. Raises NotFoundError, IntegrityError, RegistryError; the writer then holds
        what came, good for a later try, except after IntegrityError.
        """
        with self._place(ref, metadata=is_metadata(descriptor.media_type), cancelled=cancelled):
            hosts = self._hosts(ref, Capability.PULL)
            done = fetch(self._caller, hosts, ref, descriptor, writer, on_bytes, cancelled)
        self._served(ref, descriptor.digest, descriptor.media_type, done)
        return done

    def read_blob(self, ref: Reference, descriptor: Descriptor, *, cancelled: Cancelled = never) -> bytes:
        """A small blob (an image config), at most 4 MiB, checked."""
        if descriptor.size > MANIFEST_LIMIT:
            raise RegistryError(f"blob {descriptor.digest} of {descriptor.size} bytes is too large to be read into memory")
        writer = MemoryWriter()
        self.fetch_blob(ref, descriptor, writer, cancelled=cancelled)
        return bytes(writer.data)

    def exists(self, ref: Reference, descriptor: Descriptor, *, cancelled: Cancelled = never) -> bool:
        """Whether the registry itself (no mirror) has this blob or manifest in the repository."""
        return self._pusher(ref, cancelled).exists(descriptor)

    def mount_blob(
        self, ref: Reference, descriptor: Descriptor, mount_from: Sequence[str], *, cancelled: Cancelled = never
    ) -> bool:
        """Have the registry take the blob over from another of its repositories. False: it did not."""
        with self._place(ref, metadata=is_metadata(descriptor.media_type), pushing=True, cancelled=cancelled):
            return self._pusher(ref, cancelled).mount(descriptor, mount_from)

    def push_blob(
        self,
        ref: Reference,
        descriptor: Descriptor,
        open: Body,
        *,
        mount_from: Sequence[str] = (),
        on_bytes: Callable[[int], None] | None = None,
        cancelled: Cancelled = never,
    ) -> str:
        """See that the repository has the blob: `exists`, `mounted` or `pushed` says how.

        `open` is called for each try. Raises UnauthorizedError, RegistryError.
        """
        with self._place(ref, metadata=is_metadata(descriptor.media_type), pushing=True, cancelled=cancelled):
            return self._pusher(ref, cancelled).push(descriptor, open, mount_from, on_bytes)

    def push_manifest(self, ref: Reference, data: bytes, media_type: str, *, cancelled: Cancelled = never) -> Digest:
        """Put a manifest under the tag of `ref`, or without a tag under its digest."""
        digest = digest_of(data)
        if ref.digest and ref.digest != digest:
            raise IntegrityError(f"cannot push {ref}: the manifest's digest is {digest}")
        with self._place(ref, metadata=True, pushing=True, cancelled=cancelled):
            return self._pusher(ref, cancelled).put_manifest(ref.tag or digest, data, media_type, digest)

    def referrers(
        self, ref: Reference, digest: str, *, artifact_type: str = "", cancelled: Cancelled = never
    ) -> tuple[Descriptor, ...]:
        """What refers to a manifest: the referrers API, else the fallback tag (semantics.md 7.6); none is no error."""
        from .manifests import get_referrers

        hosts = self.hosts(ref, Capability.REFERRERS)
        found = get_referrers(self._caller, hosts, ref, digest, artifact_type, cancelled) if hosts else None
        if found is None:
            tag = Reference(ref.domain, ref.path, digest.replace(":", "-"))
            try:
                resolved = self.resolve(tag, cancelled=cancelled)
                found = resolved.data or self.manifest(tag, resolved.descriptor, cancelled=cancelled)[0]
            except NotFoundError:
                return ()
        manifests = [descriptor_from_json(m) for m in _index_of(found).get("manifests") or ()]
        return tuple(m for m in manifests if not artifact_type or m.artifact_type == artifact_type)

    def _pusher(self, ref: Reference, cancelled: Cancelled) -> Pusher:
        return Pusher(self._caller, self._hosts(ref, Capability.PUSH)[-1], ref, cancelled)

    def _place(
        self, ref: Reference, *, metadata: bool, cancelled: Cancelled, pushing: bool = False
    ) -> AbstractContextManager[None]:
        return self._shared.limiter.place(ref.domain, metadata=metadata, pushing=pushing, owner=self._owner, cancelled=cancelled)

    def _served(self, ref: Reference, digest: str, media_type: str, done: Fetched) -> None:
        served = Served(
            digest=str(digest),
            media_type=media_type,
            repository=ref.name,
            host=done.host,
            size=done.received,
            seconds=done.seconds,
            resumed=done.resumed,
        )
        self._shared.note_served(self._owner, served)


def _index_of(data: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(data)
    except ValueError as err:
        raise IntegrityError(f"invalid referrers index: not JSON: {err}") from err
    if not isinstance(raw, dict):
        raise IntegrityError("invalid referrers index: want a JSON object")
    return raw
