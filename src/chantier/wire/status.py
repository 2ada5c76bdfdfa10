# SPDX-License-Identifier: Apache-2.0
"""How a call ended: codes, the error that carries one, and our own errors as statuses and back (protocol.md 4.8)."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from typing import Any

from chantier import errors
from chantier.values import dataclass

from .headers import HeaderList, Metadata, decode_metadata, from_base64, percent_decode, percent_encode

(
    OK,
    CANCELLED,
    UNKNOWN,
    INVALID_ARGUMENT,
    DEADLINE_EXCEEDED,
    NOT_FOUND,
    ALREADY_EXISTS,
    PERMISSION_DENIED,
    RESOURCE_EXHAUSTED,
    FAILED_PRECONDITION,
    ABORTED,
    OUT_OF_RANGE,
    UNIMPLEMENTED,
    INTERNAL,
    UNAVAILABLE,
    DATA_LOSS,
    UNAUTHENTICATED,
) = range(17)

# As grpc-go prints them.
NAMES = (
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
)

DETAIL_PREFIX = "github.com/moby/buildkit/"
_ADVICE = "chantier/advice+json"  # ours: hint, detail, whether it passes; other clients ignore what they do not know


def code_name(code: int) -> str:
    return NAMES[code] if 0 <= code < len(NAMES) else f"Code({code})"


@dataclass(frozen=True, slots=True)
class Detail:
    """One google.protobuf.Any of a status. BuildKit's hold JSON, for a type_url that ends in `+json`."""

    type_url: str
    value: bytes

    @property
    def name(self) -> str:
        """BuildKit's name of it, such as `errdefs.Source`; empty for a detail of others."""
        if self.type_url.startswith(DETAIL_PREFIX) and self.type_url.endswith("+json"):
            return self.type_url[len(DETAIL_PREFIX) : -len("+json")]
        return ""

    def json(self) -> Any:
        """The value parsed; None if it is no JSON."""
        try:
            return json.loads(self.value)
        except ValueError:
            return None


def json_detail(name: str, value: object) -> Detail:
    return Detail(f"{DETAIL_PREFIX}{name}+json", json.dumps(value, separators=(",", ":")).encode())


class GrpcError(errors.ChantierError):
    """A call that ended with a status other than OK. `details` and trailing `metadata` are kept as they came."""

    def __init__(
        self,
        code: int,
        message: str,
        details: Iterable[Detail] = (),
        metadata: Metadata | None = None,
        *,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.grpc_code = code
        self.message = message
        self.details: list[Detail] = list(details)
        self.metadata = metadata if metadata is not None else Metadata()
        self.transient = code == UNAVAILABLE
        self.exit_code = {CANCELLED: 130, INTERNAL: 100, RESOURCE_EXHAUSTED: 102}.get(code, 1)

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"GrpcError({code_name(self.code)}, {self.message!r})"

    @property
    def go_text(self) -> str:
        """As grpc-go prints an error."""
        return f"rpc error: code = {code_name(self.code)} desc = {self.message}"


# -- on the wire

_GRPC_OF_HTTP = {
    b"400": INTERNAL,
    b"401": UNAUTHENTICATED,
    b"403": PERMISSION_DENIED,
    b"404": UNIMPLEMENTED,
    b"429": UNAVAILABLE,
    b"502": UNAVAILABLE,
    b"503": UNAVAILABLE,
    b"504": UNAVAILABLE,
}


def status_headers(error: GrpcError | None, most_bytes: int) -> HeaderList:
    """Trailers that tell a status, within the header list the peer takes: details go first, then the message's end."""
    if error is None:
        return [(b"grpc-status", b"0")]
    headers = [(b"grpc-status", b"%d" % error.code)]
    if error.message:
        message = percent_encode(error.message)
        if len(message) > most_bytes // 2:
            message = message[: most_bytes // 2].rsplit(b"%", 1)[0] + b"..."
        headers.append((b"grpc-message", message))
    if error.details:
        raw = base64.b64encode(_pack_status(error)).rstrip(b"=")
        if len(raw) + sum(len(n) + len(v) + 32 for n, v in headers) + 1024 <= most_bytes:
            headers.append((b"grpc-status-details-bin", raw))
    return headers


def _pack_status(error: GrpcError) -> bytes:
    from chantier.pb.common_pb2 import Status

    status = Status(code=error.code, message=error.message)
    for detail in error.details:
        status.details.add(type_url=detail.type_url, value=detail.value)
    return bytes(status.SerializeToString())


def _unpack_details(raw: bytes) -> list[Detail]:
    from google.protobuf.message import DecodeError

    from chantier.pb.common_pb2 import Status

    try:
        status = Status.FromString(raw)
    except DecodeError:  # details are a courtesy: the status stands without them
        return []
    return [Detail(any.type_url, any.value) for any in status.details]


def read_status(trailers: HeaderList) -> GrpcError | None:
    """The status of a call from its trailers; None is OK."""
    found = dict(reversed(trailers))
    text = found.get(b"grpc-status")
    if text is None:
        http = found.get(b":status", b"200")
        if http != b"200":
            return http_error(http)
        return GrpcError(INTERNAL, "the server ended the call without a status")
    if not text.isdigit() or len(text) > 9:
        return GrpcError(UNKNOWN, f"malformed grpc-status {text.decode('latin-1')!r}")
    code = int(text)
    if code == OK:
        return None
    raw = from_base64(found.get(b"grpc-status-details-bin", b""))
    details = _unpack_details(raw) if raw else []
    return GrpcError(code, percent_decode(found.get(b"grpc-message", b"")), details, decode_metadata(trailers))


def http_error(status: bytes) -> GrpcError:
    text = status.decode("latin-1")
    return GrpcError(_GRPC_OF_HTTP.get(status, UNKNOWN), f"unexpected HTTP status {text} instead of a gRPC answer")


# -- our errors


def status_of(error: BaseException, extra: Sequence[Detail] = ()) -> GrpcError:
    """The status that tells of an error, with BuildKit's details of it. `extra` stand first."""
    if isinstance(error, GrpcError):
        if not extra:
            return error
        return GrpcError(error.code, error.message, [*extra, *error.details], error.metadata)
    if isinstance(error, errors.ChantierError):
        return GrpcError(error.grpc_code, str(error), [*extra, *details_of(error)], hint=error.hint)
    if isinstance(error, TimeoutError):
        return GrpcError(DEADLINE_EXCEEDED, str(error) or "context deadline exceeded", extra)
    return GrpcError(UNKNOWN, str(error) or type(error).__name__, extra)


def details_of(error: errors.ChantierError) -> list[Detail]:
    """Vertex, sources and exit status, each as stock clients read them."""
    details = []
    if error.vertex:
        details.append(json_detail("errdefs.Vertex", {"digest": error.vertex}))
    details += [json_detail("errdefs.Source", _source_json(source)) for source in error.sources]
    advice: dict[str, Any] = {key: text for key, text in (("hint", error.hint), ("detail", error.detail)) if text}
    if error.exit_code == errors.EX_TEMPFAIL:
        advice["exit_code"] = error.exit_code
    if advice:
        details.append(Detail(_ADVICE, json.dumps(advice).encode()))
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, errors.StepError):
            details.append(json_detail("gatewayapi.ExitMessage", {"Code": cause.exit_status} if cause.exit_status else {}))
            break
        if isinstance(cause, GrpcError):  # what another engine told of it, but for what stands above already
            told = {detail.type_url for detail in details}
            details += [detail for detail in cause.details if detail.type_url not in told]
            break
        cause = cause.__cause__
    return details


def _source_json(source: errors.Source) -> dict[str, Any]:
    info = {
        "filename": source.filename,
        "data": base64.b64encode(source.data).decode(),
        "language": source.language,
    }
    found: dict[str, Any] = {key: value for key, value in info.items() if value}
    if source.definition is not None:
        raws = getattr(source.definition, "def", ())
        found["definition"] = {"def": [base64.b64encode(raw).decode() for raw in raws]}
    ranges = []
    for place in source.ranges:
        start = {"line": place.start, "character": place.start_column}
        end = {"line": place.end, "character": place.end_column}
        ranges.append({"start": _without_zeros(start), "end": _without_zeros(end)})
    return {"info": found, "ranges": ranges}


def _without_zeros(value: dict[str, int]) -> dict[str, int]:
    return {key: number for key, number in value.items() if number}


_CLASSES: dict[int, type[errors.ChantierError]] = {
    CANCELLED: errors.CancelledError_,
    INVALID_ARGUMENT: errors.UsageError,
    NOT_FOUND: errors.NotFoundError,
    RESOURCE_EXHAUSTED: errors.DiskFullError,
    FAILED_PRECONDITION: errors.ChantierError,
    UNIMPLEMENTED: errors.UnsupportedError,
    INTERNAL: errors.StoreError,
}


def error_of(status: GrpcError) -> errors.ChantierError:
    """The error of ours that a status tells of: same text, code, places in sources and vertex. The status is its cause."""
    kind = _CLASSES.get(status.code, errors.ChantierError)
    exit_status = next((_exit_code(d) for d in status.details if d.name == "gatewayapi.ExitMessage"), None)
    made: errors.ChantierError
    if exit_status is not None:
        made = errors.StepError(status.message, exit_status=exit_status)
    else:
        made = kind(status.message)
        made.exit_code = status.exit_code
    made.grpc_code = status.code
    made.transient = status.transient
    made.hint = status.hint
    for detail in status.details:
        if detail.name == "errdefs.Vertex":
            value = detail.json()
            if isinstance(value, dict) and isinstance(value.get("digest"), str):
                made.vertex = value["digest"]
        elif detail.name == "errdefs.Source":
            source = _read_source(detail.json())
            if source is not None:
                made.sources.append(source)
        elif detail.type_url == _ADVICE:
            value = detail.json()
            if isinstance(value, dict):
                made.hint, made.detail = value.get("hint"), value.get("detail")
                if value.get("exit_code") == errors.EX_TEMPFAIL:
                    made.exit_code, made.transient = errors.EX_TEMPFAIL, True
    made.__cause__ = status
    return made


def _exit_code(detail: Detail) -> int:
    value = detail.json()
    code = value.get("Code", 0) if isinstance(value, dict) else 0
    return code if isinstance(code, int) else 0


def _read_source(value: Any) -> errors.Source | None:
    try:
        info = value.get("info") or {}
        ranges = []
        for place in value.get("ranges") or ():
            start, end = place.get("start") or {}, place.get("end") or {}
            ranges.append(
                errors.SourceRange(
                    int(start.get("line", 0)),
                    int(end.get("line", 0)),
                    int(start.get("character", 0)),
                    int(end.get("character", 0)),
                )
            )
        data = base64.b64decode(info.get("data") or "")
        return errors.Source(str(info.get("filename", "")), data, tuple(ranges), str(info.get("language", "")))
    except (AttributeError, TypeError, ValueError):  # not what we know; other details may be
        return None


__all__ = [
    "ABORTED",
    "ALREADY_EXISTS",
    "CANCELLED",
    "DATA_LOSS",
    "DEADLINE_EXCEEDED",
    "FAILED_PRECONDITION",
    "INTERNAL",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "OK",
    "OUT_OF_RANGE",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
    "UNIMPLEMENTED",
    "UNKNOWN",
    "Detail",
    "GrpcError",
    "code_name",
    "details_of",
    "error_of",
    "http_error",
    "json_detail",
    "read_status",
    "status_headers",
    "status_of",
]
