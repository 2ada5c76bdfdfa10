# SPDX-License-Identifier: Apache-2.0
"""Every way Chantier fails, as one tree.

    ChantierError                      brief, detail, hint; exit_code, grpc_code, transient
    |- UsageError                      a flag, an argument or a value the caller gave
    |- ConfigError                     a config file: file, line, key
    |- DockerfileError                 a Dockerfile: carries source ranges
    |- ReferenceError_                 an image reference, digest or platform that does not parse
    |- NotFoundError                   something named is not there
    |- PolicyError                     a policy or a missing entitlement forbids it
    |- RegistryError                   a registry said no: host, status; .transient says whether to try again
    |  |- UnauthorizedError
    |  `- RateLimitedError             retry_after seconds, reset time
    |- FetchError                      a web site or a git server did not give what was asked; .transient as above
    |- IntegrityError                  a digest or a size does not match what was promised
    |- StepError                       a process of the build ended badly: argv, exit status
    |- SolveError                      wraps any of these with the vertex it happened in
    |- CancelledError_                 the build was cancelled
    |- SessionError                    the client's machine did not answer, or refused
    |  `- SessionLostError             it has gone away
    |- StoreError                      the state under root cannot be read or written
    |  `- DiskFullError
    `- UnsupportedError                this machine, kernel or build cannot do it

`brief` is one line: what failed, on what, then the cause; lower case, no full stop. `detail` is text for a person who
wants more, `hint` says what to do. `exit_code` follows docker buildx (1 in general, 130 cancelled, 100 internal); 75
(sysexits.h, EX_TEMPFAIL) says that the same command may well succeed later.
`grpc_code` is the status code a daemon answers with (google.rpc.Code).
"""

from __future__ import annotations

from typing import Any

from chantier.values import dataclass, field

EX_TEMPFAIL = 75


@dataclass(frozen=True, slots=True)
class SourceRange:
    """Lines of one source file that an error points at: 1-based lines, both ends inside; columns are 0-based."""

    start: int
    end: int
    start_column: int = 0
    end_column: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """A file an error points into, and where (errdefs.Source on the wire)."""

    filename: str
    data: bytes
    ranges: tuple[SourceRange, ...]
    language: str = "Dockerfile"
    definition: object = field(default=None, compare=False, repr=False)  # pb.Definition of what made the file, if it is known


class ChantierError(Exception):
    """The root of all errors Chantier raises on purpose."""

    exit_code = 1
    grpc_code = 2  # UNKNOWN, as BuildKit: the text then stands without a prefix
    transient = False

    def __init__(self, brief: str, *, detail: str | None = None, hint: str | None = None) -> None:
        super().__init__(brief)
        self.brief = brief
        self.detail = detail
        self.hint = hint
        self.sources: list[Source] = []  # where in the user's files it came from, innermost first
        self.vertex: str | None = None  # digest of the vertex that failed
        self.subject: tuple[str, int] | None = None  # ("file", action) or ("cache", input): which part of the vertex failed
        self.failed: Any = None  # op.FailedTrees: what it was given and left, where the build asked for it

    def __str__(self) -> str:
        return self.brief

    def reworded(self, brief: str) -> ChantierError:
        """The same error under another brief. A copy: the original may be what several builds were given."""
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        new.args = (brief,)
        new.brief = brief
        new.sources = list(self.sources)
        new.__cause__ = self.__cause__
        return new.with_traceback(self.__traceback__)

    def at(self, *sources: Source) -> ChantierError:
        """Add source places and return self, for `raise X(...).at(place)`."""
        self.sources.extend(sources)
        return self


class UsageError(ChantierError):
    grpc_code = 3


class ConfigError(ChantierError):
    """A config file that cannot be used. `brief` starts with FILE:LINE: where known."""

    grpc_code = 3

    def __init__(
        self,
        brief: str,
        *,
        file: str | None = None,
        line: int | None = None,
        key: str | None = None,
        detail: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(brief, detail=detail, hint=hint)
        self.file = file
        self.line = line
        self.key = key


class DockerfileError(ChantierError):
    pass


class ReferenceError_(ChantierError):
    grpc_code = 3


class NotFoundError(ChantierError):
    grpc_code = 5


class PolicyError(ChantierError):
    pass


class MaterialsError(PolicyError):
    """A provenance of complete materials was asked for, and not all could be listed: `locals` are local sources."""

    def __init__(self, brief: str, *, locals: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(brief, hint=hint)
        self.locals = locals


class RegistryError(ChantierError):
    """A registry request that failed for good, after retries and fall-through."""

    def __init__(
        self,
        brief: str,
        *,
        host: str | None = None,
        status: int | None = None,
        transient: bool = False,
        detail: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(brief, detail=detail, hint=hint)
        self.host = host
        self.status = status
        self.transient = transient
        if transient:
            self.exit_code = EX_TEMPFAIL


class FetchError(ChantierError):
    """What a web site or a git server was asked for and did not give, after retries."""

    def __init__(
        self, brief: str, *, host: str | None = None, status: int | None = None, transient: bool = False, hint: str | None = None
    ) -> None:
        super().__init__(brief, hint=hint)
        self.host = host
        self.status = status
        self.transient = transient
        if transient:
            self.exit_code = EX_TEMPFAIL


class UnauthorizedError(RegistryError):
    pass


class RateLimitedError(RegistryError):
    """`retry_after_s` is how long to wait, `reset_at` that as a time (seconds since the epoch), `limit` what is allowed."""

    def __init__(
        self,
        brief: str,
        *,
        retry_after_s: float | None = None,
        reset_at: float | None = None,
        limit: str = "",
        host: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(brief, host=host, status=429, transient=True, hint=hint)
        self.retry_after_s = retry_after_s
        self.reset_at = reset_at
        self.limit = limit


class IntegrityError(ChantierError):
    grpc_code = 9


class StepError(ChantierError):
    """A process of the build that did not end as it should (BuildKit's ExitError, gatewayapi.ExitMessage on the wire)."""

    def __init__(self, brief: str, *, argv: tuple[str, ...] = (), exit_status: int = 255, hint: str | None = None) -> None:
        super().__init__(brief, hint=hint)
        self.argv = argv
        self.exit_status = exit_status


class CancelledError_(ChantierError):
    exit_code = 130
    grpc_code = 1

    def __init__(self, brief: str = "context canceled") -> None:
        super().__init__(brief)


class SessionError(ChantierError):
    pass


class SessionLostError(SessionError):
    """The client has gone away, or was cut off: nothing more can be asked of it."""


class StoreError(ChantierError):
    exit_code = 100
    grpc_code = 13


class DiskFullError(StoreError):
    exit_code = 102
    grpc_code = 8


class UnsupportedError(ChantierError):
    grpc_code = 12


class SolveError(ChantierError):
    """Any error seen from outside: the text clients print after `ERROR: `, the vertex, and in the library its last log lines."""

    def __init__(self, brief: str, cause: BaseException, *, name: str = "", logs: tuple[str, ...] = ()) -> None:
        super().__init__(brief, detail=getattr(cause, "detail", None), hint=getattr(cause, "hint", None))
        self.name = name
        self.logs = logs
        self.__cause__ = cause
        if isinstance(cause, ChantierError):
            self.sources = list(cause.sources)
            self.vertex = cause.vertex
            self.subject = cause.subject
            self.exit_code = cause.exit_code
            self.grpc_code = cause.grpc_code
            self.transient = cause.transient


__all__ = [
    "EX_TEMPFAIL",
    "CancelledError_",
    "ChantierError",
    "ConfigError",
    "DiskFullError",
    "DockerfileError",
    "FetchError",
    "IntegrityError",
    "NotFoundError",
    "PolicyError",
    "RateLimitedError",
    "ReferenceError_",
    "RegistryError",
    "SessionError",
    "SessionLostError",
    "SolveError",
    "Source",
    "SourceRange",
    "StepError",
    "StoreError",
    "UnauthorizedError",
    "UnsupportedError",
    "UsageError",
]
