# SPDX-License-Identifier: Apache-2.0
"""Tags to descriptors, and manifests by digest (semantics.md 7.2, 7.3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from chantier.errors import ChantierError, IntegrityError, NotFoundError, ReferenceError_, RegistryError
from chantier.spec import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Digest,
    Reference,
    digest_of,
)

from .caller import Caller
from .failures import TRANSIENT, Failures
from .hosts import Host
from .messages import Request
from .transport import Response
from .types import Cancelled, Resolved

MOST_WRONG = 5
"""How often a host may answer with wrong bytes before it is believed to have no others."""
MANIFEST_LIMIT = 4 * 1048 * 1048  # upstream's number, not 4 MiB
_ACCEPT = f"{DOCKER_MANIFEST}, {DOCKER_INDEX}, {OCI_MANIFEST}, {OCI_INDEX}, */*"
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+"
_OVERSIZE, _STATUS, _MISSING, _SILENT = 4, 3, 2, 1


def pull_scope(host: Host, ref: Reference) -> tuple[str, ...]:
    return (f"repository:{host.prefix}{ref.path}:pull",)


def resolve(caller: Caller, hosts: Sequence[Host], ref: Reference, cancelled: Cancelled, *, persist: bool = True) -> Resolved:
    """HEAD at each host until one knows `ref`; by digest the blobs are asked too, after all manifests.

    Without `persist` not even the last host is asked again.
    """
    paths = [f"manifests/{ref.object}"] + ([f"blobs/{ref.digest}"] if ref.digest else [])
    failures = Failures()
    hosts = caller.choose(hosts, failures)
    tries = [(host, path) for path in paths for host in hosts]
    for number, (host, path) in enumerate(tries):
        last = number == len(tries) - 1 or (bool(ref.digest) and number == len(hosts) - 1)
        try:
            return _head(caller, host, ref, path, last=last and persist, cancelled=cancelled)
        except (RegistryError, NotFoundError, IntegrityError) as err:
            failures.add(host.name, err, _priority(err))
            caller.passed_over(host, err, last=number == len(tries) - 1)
    raise failures.error()


def get_manifest(
    caller: Caller, hosts: Sequence[Host], ref: Reference, what: Descriptor | str, cancelled: Cancelled
) -> tuple[bytes, str, Host]:
    """Its bytes, its type, and who served it."""
    if isinstance(what, Descriptor):
        digest, accept = what.digest, f"{what.media_type}, */*"
    else:
        digest, accept = Digest.parse(what), _ACCEPT
    failures = Failures()
    hosts = caller.choose(hosts, failures)
    for number, host in enumerate(hosts):
        request = Request(method="GET", url=host.url(ref.path, f"manifests/{digest}"), headers={"accept": accept})
        last = number == len(hosts) - 1
        try:
            return _checked_manifest(caller, host, request, ref, digest, last=last, cancelled=cancelled)
        except (RegistryError, NotFoundError, IntegrityError) as err:
            failures.add(host.name, err)
            caller.passed_over(host, err, last=last)
    raise failures.error()


def _checked_manifest(
    caller: Caller, host: Host, request: Request, ref: Reference, digest: Digest, *, last: bool, cancelled: Cancelled
) -> tuple[bytes, str, Host]:
    """Where there is no other host, wrong bytes are asked for once more: they may have been spoilt on the way."""
    for attempt in range(MOST_WRONG):
        response, data = caller.document(
            host, request, partial(_whole, ref=ref, host=host), scopes=pull_scope(host, ref), last=last, cancelled=cancelled
        )
        if response.status != 200:
            raise _missing_or(caller, host, request, response, f"{ref.name}@{digest}")
        if digest.algorithm != "sha256" or (got := digest_of(data)) == digest:
            return data, media_type_of(response), host
        if not last or attempt == MOST_WRONG - 1:
            break
    raise IntegrityError(f"manifest of {ref.name}@{digest} from {host.name} has digest {got}")


def get_referrers(
    caller: Caller, hosts: Sequence[Host], ref: Reference, digest: str, artifact_type: str, cancelled: Cancelled
) -> bytes | None:
    """None where no host has the API. Raises where none could be asked."""
    query = {"artifactType": artifact_type} if artifact_type else {}
    failures = Failures()
    absent = False
    hosts = caller.choose(hosts, failures)
    for number, host in enumerate(hosts):
        request = Request(method="GET", url=host.url(ref.path, f"referrers/{digest}", query), headers={"accept": OCI_INDEX})
        last = number == len(hosts) - 1
        read = partial(_whole, ref=ref, host=host)
        try:
            response, data = caller.document(host, request, read, scopes=pull_scope(host, ref), last=last, cancelled=cancelled)
        except RegistryError as err:
            failures.add(host.name, err)
            caller.passed_over(host, err, last=last)
            continue
        if response.status == 200:
            return data
        absent = absent or response.status not in TRANSIENT
        if response.status in TRANSIENT:
            failures.add(host.name, caller.refused(host, request, response))
        response.close()
    if failures.tried and not absent:
        raise failures.error()
    return None


def media_type_of(response: Response) -> str:
    return response.headers.get("content-type", "").partition(";")[0].strip()


def _head(caller: Caller, host: Host, ref: Reference, path: str, *, last: bool, cancelled: Cancelled) -> Resolved:
    request = Request(method="HEAD", url=host.url(ref.path, path), headers={"accept": _ACCEPT})
    caller.trace.debug("resolving", {"host": host.authority, "url": request.url})
    scopes = pull_scope(host, ref)
    response = caller.call(host, request, scopes=scopes, last=last, cancelled=cancelled)
    if response.status in (403, 405):  # an answer to HEAD says no more than its number; and some know no HEAD
        response.close()
        return _get(caller, host, ref, path, scopes, last=last, cancelled=cancelled)
    with response:
        if response.status != 200:
            raise _missing_or(caller, host, request, response, str(ref.with_default_tag()))
        found = _described(response, ref.digest if path.startswith("blobs/") else "")
    if found is None:
        return _get(caller, host, ref, path, scopes, last=last, cancelled=cancelled)
    return _checked(caller, host, ref, path, found, None)


def _get(
    caller: Caller, host: Host, ref: Reference, path: str, scopes: tuple[str, ...], *, last: bool, cancelled: Cancelled
) -> Resolved:
    """Fetch to learn digest and size by hashing; of a blob as large as a layer that would be no bargain."""
    request = Request(method="GET", url=host.url(ref.path, path), headers={"accept": _ACCEPT})
    response, data = caller.document(
        host, request, partial(_whole, ref=ref, host=host), scopes=scopes, last=last, cancelled=cancelled
    )
    if response.status != 200:
        raise _missing_or(caller, host, request, response, str(ref.with_default_tag()))
    media_type = media_type_of(response)
    descriptor = Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))
    return _checked(caller, host, ref, path, descriptor, data)


def _described(response: Response, asked: str) -> Descriptor | None:
    """What the headers say, if they say it all. A blob's answer need not repeat the digest that was `asked` for."""
    try:
        digest = Digest.parse(response.headers.get("docker-content-digest", "") or asked)
        size = int(response.headers.get("content-length", ""))
    except (ReferenceError_, ValueError):
        return None
    return Descriptor(media_type=media_type_of(response), digest=digest, size=size)


def _checked(caller: Caller, host: Host, ref: Reference, path: str, found: Descriptor, data: bytes | None) -> Resolved:
    if found.media_type.startswith(_SCHEMA_1):
        raise IntegrityError(
            f"{ref}: unsupported manifest: Docker schema 1 from {host.name}", hint="push the image again with a current client"
        )
    if path.startswith("manifests/") and found.size > MANIFEST_LIMIT:
        raise _too_large(ref, found.size, host)
    if ref.digest and found.digest != ref.digest and found.digest.algorithm == Digest(ref.digest).algorithm:
        raise IntegrityError(f"{host.name} answered with {found.digest} when asked for {ref.name}@{ref.digest}")
    caller.trace.debug("resolved", {"desc.digest": str(found.digest), "host": host.authority})
    return Resolved(descriptor=found, host=host.name, data=data)


class TooLargeError(RegistryError):
    pass


def _too_large(ref: Reference, size: int, host: Host) -> RegistryError:
    return TooLargeError(
        f"{ref}: manifest of {size} bytes from {host.name} exceeds the limit of {MANIFEST_LIMIT}", host=host.authority
    )


def _whole(response: Response, ref: Reference, host: Host) -> bytes:
    """The body, which must be a manifest's size. Raises TransportError where it breaks off."""
    parts: list[bytes] = []
    size = 0
    with response:
        for chunk in response.chunks():
            size += len(chunk)
            if size > MANIFEST_LIMIT:
                raise _too_large(ref, size, host)
            parts.append(chunk)
    return b"".join(parts)


def _missing_or(caller: Caller, host: Host, request: Request, response: Response, name: str) -> ChantierError:
    if response.status == 404:
        response.close()
        return NotFoundError(f"{name}: not found")
    return caller.refused(host, request, response)


def _priority(err: ChantierError) -> int:
    """semantics.md 7.2: the answer that tells most is reported."""
    if isinstance(err, TooLargeError):
        return _OVERSIZE
    if isinstance(err, NotFoundError):
        return _MISSING
    if isinstance(err, RegistryError) and err.status is None:
        return _SILENT
    return _STATUS
