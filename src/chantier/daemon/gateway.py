# SPDX-License-Identifier: Apache-2.0
"""LLBBridge for one build: what a frontend asks, whoever runs it (protocol.md 1.5.1).

The daemon gives each call to the build that its metadata names (`services.py`); a frontend image in a container has a
server of its own, for its build alone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from chantier.engine import CacheImport, EngineBridge, EngineRef, ExistsError, FrontendResult, KeptRef, OciStore, ReadableRef
from chantier.errors import ChantierError, NotFoundError, UsageError
from chantier.pb import gateway_pb2 as pb
from chantier.pb import ops_pb2
from chantier.spec import new_id
from chantier.wire import Detail, GrpcError, ServerCall, status_of
from chantier.wire.status import INVALID_ARGUMENT, UNKNOWN

from .containers import Processes
from .convert import chain_message, read_result, read_warning, result_message
from .errors import build_status
from .policy import SourcePolicy
from .solve_error import failed_trees, solve_detail
from .workers import GATEWAY_CAPS, caps, from_pb, llb_caps, worker_record

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")
_MOST_SUFFIX_BYTES = 4096
_ALGORITHMS = {
    pb.ChecksumRequest.CHECKSUM_ALGO_SHA256: "sha256",
    pb.ChecksumRequest.CHECKSUM_ALGO_SHA384: "sha384",
    pb.ChecksumRequest.CHECKSUM_ALGO_SHA512: "sha512",
}
METHODS = (
    "ResolveImageConfig",
    "ResolveSourceMeta",
    "Solve",
    "ReadFile",
    "ReadDir",
    "StatFile",
    "Evaluate",
    "Ping",
    "Return",
    "Inputs",
    "Warn",
    "NewContainer",
    "ReleaseContainer",
    "ReadFileContainer",
    "ReadDirContainer",
    "StatFileContainer",
)


class Gateway:
    """`returned` is the result that the client gives, or its error."""

    def __init__(self, bridge: EngineBridge, inputs: Mapping[str, ops_pb2.Definition]) -> None:
        self.bridge = bridge
        self.returned: asyncio.Future[FrontendResult] = asyncio.get_running_loop().create_future()
        self._inputs = inputs
        self._refs: dict[str, ReadableRef] = {}
        self._names: dict[ReadableRef, str] = {}
        self._failures: dict[int, dict[str, list[str]]] = {}
        self._handlers: dict[str, Callable[[Any, ServerCall], Awaitable[Any]]] = {
            "ResolveImageConfig": self._resolve_image_config,
            "ResolveSourceMeta": self._resolve_source_meta,
            "Solve": self._solve,
            "ReadFile": self._read_file,
            "ReadDir": self._read_dir,
            "StatFile": self._stat_file,
            "Evaluate": self._evaluate,
            "Ping": self._ping,
            "Return": self._return,
            "Inputs": self._give_inputs,
            "Warn": self._warn,
            "NewContainer": self._new_container,
            "ReleaseContainer": self._release_container,
            "ReadFileContainer": self._read_file_container,
            "ReadDirContainer": self._read_dir_container,
            "StatFileContainer": self._stat_file_container,
        }

    async def handle(self, method: str, request: Any, call: ServerCall) -> Any:
        return await self.bridge.within(self._run(self._handlers[method](request, call)))

    async def _run(self, work: Awaitable[T]) -> T:
        return await work

    def fail(self, error: BaseException) -> None:
        """No result will come."""
        if not self.returned.done():
            self.returned.set_exception(error)
            self.returned.exception()  # whether somebody waits for it or not

    # -- refs

    def name_of(self, ref: Any) -> str:
        if not isinstance(ref, ReadableRef) or (isinstance(ref, EngineRef) and ref.empty):
            return ""
        name = self._names.get(ref)
        if name is None:
            name = self._names[ref] = new_id()
            self._refs[name] = ref
        return name

    def ref_of(self, id: str) -> ReadableRef | None:
        if not id:
            return None
        ref = self._refs.get(id)
        if ref is None:
            raise GrpcError(UNKNOWN, f"no such ref: {id}")
        return ref

    def _needed(self, id: str) -> ReadableRef:
        ref = self.ref_of(id)
        if ref is None:
            raise GrpcError(UNKNOWN, "no such file or directory: the result is empty")
        return ref

    async def _reading(self, id: str, work: Coroutine[Any, Any, T]) -> T:
        """Errors of what makes a ref carry what a client needs to look into it; those of reading are Unknown, as Go's are."""
        try:
            return await work
        except GrpcError:
            raise
        except ChantierError as err:
            raise self._failed(err, self._refs.get(id)) from err

    def _failed(self, err: ChantierError, ref: ReadableRef | None) -> GrpcError:
        return build_status(err, [solve_detail(err, ref, self._kept(err))])

    def _kept(self, err: ChantierError) -> dict[str, list[str]]:
        """Ids of what a failed operation was given and left, for containers that look into it."""
        failed = failed_trees(err)
        if failed is None:
            return {}
        job = self.bridge.job
        if failed not in job.failures:
            if not failed.hold(job.id):  # of another build, that is over
                return {}
            job.failures.append(failed)
        known = self._failures.get(id(failed))
        if known is None:
            known = self._failures[id(failed)] = {
                "inputIDs": [self._keep(ref) for ref in failed.inputs],
                "mountIDs": [self._keep(ref) for ref in failed.mounts],
            }
        return known

    def _keep(self, ref: Any) -> str:
        return self.name_of(KeptRef(self.bridge, ref)) if ref is not None else ""

    # -- what is asked

    async def _ping(self, request: pb.PingRequest, call: ServerCall) -> pb.PongResponse:
        engine = self.bridge.engine
        return pb.PongResponse(
            FrontendAPICaps=caps(GATEWAY_CAPS), LLBCaps=llb_caps(engine), Workers=[worker_record(engine, brief=True)]
        )

    async def _solve(self, request: pb.SolveRequest, call: ServerCall) -> pb.SolveResponse:
        ref: EngineRef | None = None
        try:
            result = await self._make(request)
            for found in result.refs.values() if request.Evaluate else ():
                if isinstance(found, EngineRef):
                    ref = found
                    await ref.result()
        except GrpcError:
            raise
        except ChantierError as err:
            raise self._failed(err, ref) from err
        if request.Final:
            self._final(request, result)
        if not request.allowResultReturn:
            only = result.refs.get("") if len(result.refs) <= 1 else None
            return pb.SolveResponse(ref=self.name_of(only))
        return pb.SolveResponse(result=result_message(result, self.name_of, array=request.allowResultArrayRef))

    async def _make(self, request: pb.SolveRequest) -> FrontendResult:
        imports = tuple(CacheImport(type=entry.Type, attrs=dict(entry.Attrs)) for entry in request.CacheImports)
        if request.Frontend:
            if request.HasField("Definition") and getattr(request.Definition, "def"):
                raise UsageError("cannot solve with both Definition and Frontend specified")
            inputs = dict(request.FrontendInputs)
            return await self.bridge.run_frontend(request.Frontend, dict(request.FrontendOpt), inputs)
        check = _policy(request)
        return FrontendResult(refs={"": await self.bridge.solve(request.Definition, cache_imports=imports, check=check)})

    def _final(self, request: pb.SolveRequest, result: FrontendResult) -> None:
        """The way of returning before there was Return."""
        metadata = dict(result.metadata)
        if request.ExporterAttr:
            from base64 import b64decode

            attributes = json.loads(request.ExporterAttr) or {}
            metadata |= {key: b64decode(value) for key, value in attributes.items()}
        self._give(FrontendResult(refs=result.refs, metadata=metadata))

    def _give(self, result: FrontendResult) -> None:
        if self.returned.done():
            raise GrpcError(UNKNOWN, "gateway result is already set")
        self.returned.set_result(result)

    async def _return(self, request: pb.ReturnRequest, call: ServerCall) -> pb.ReturnResponse:
        if request.HasField("error") == request.HasField("result"):
            raise GrpcError(UNKNOWN, "gateway return must be either result or err")
        if self.returned.done():
            raise GrpcError(UNKNOWN, "gateway result is already set")
        if request.HasField("error"):
            error = request.error
            self.fail(GrpcError(error.code or UNKNOWN, error.message, [Detail(d.type_url, d.value) for d in error.details]))
        else:
            self._give(read_result(request.result, self.ref_of))
        return pb.ReturnResponse()

    async def _evaluate(self, request: pb.EvaluateRequest, call: ServerCall) -> pb.EvaluateResponse:
        ref = self.ref_of(request.Ref)
        if ref is not None:
            await self._reading(request.Ref, ref.result())
        return pb.EvaluateResponse()

    async def _read_file(self, request: pb.ReadFileRequest, call: ServerCall) -> pb.ReadFileResponse:
        window = request.Range
        reading = self._needed(request.Ref).read_file(request.FilePath, offset=window.Offset, length=window.Length)
        return pb.ReadFileResponse(Data=await self._reading(request.Ref, reading))

    async def _read_dir(self, request: pb.ReadDirRequest, call: ServerCall) -> pb.ReadDirResponse:
        reading = self._needed(request.Ref).read_dir(request.DirPath, pattern=request.IncludePattern)
        return pb.ReadDirResponse(entries=await self._reading(request.Ref, reading))

    async def _stat_file(self, request: pb.StatFileRequest, call: ServerCall) -> pb.StatFileResponse:
        reading = self._needed(request.Ref).stat_file(request.Path)
        return pb.StatFileResponse(stat=await self._reading(request.Ref, reading))

    async def _give_inputs(self, request: pb.InputsRequest, call: ServerCall) -> pb.InputsResponse:
        return pb.InputsResponse(Definitions=dict(self._inputs))

    async def _warn(self, request: pb.WarnRequest, call: ServerCall) -> pb.WarnResponse:
        try:
            warning = read_warning(request)
        except UsageError as err:
            raise GrpcError(INVALID_ARGUMENT, str(err)) from err
        await self.bridge.warn(warning)
        return pb.WarnResponse()

    # -- containers

    async def exec_process(self, call: ServerCall) -> None:
        await Processes(self, call).serve()

    async def _new_container(self, request: pb.NewContainerRequest, call: ServerCall) -> pb.NewContainerResponse:
        try:
            await self.bridge.containers.new(
                request.ContainerID,
                [(mount, self.ref_of(mount.resultID)) for mount in request.Mounts],
                network=request.Network,
                platform=request.platform if request.HasField("platform") else None,
                hostname=request.hostname,
                extra_hosts=list(request.extraHosts),
            )
        except ExistsError as err:
            raise status_of(err) from err
        return pb.NewContainerResponse()

    async def _release_container(self, request: pb.ReleaseContainerRequest, call: ServerCall) -> pb.ReleaseContainerResponse:
        try:
            await self.bridge.containers.release(request.ContainerID)
        except NotFoundError as err:
            raise status_of(err) from err
        return pb.ReleaseContainerResponse()

    async def _read_file_container(self, request: pb.ReadFileRequest, call: ServerCall) -> pb.ReadFileResponse:
        window = request.Range
        data = await self.bridge.containers.read_file(
            request.Ref, request.MountIndex, request.FilePath, offset=window.Offset, length=window.Length
        )
        return pb.ReadFileResponse(Data=data)

    async def _read_dir_container(self, request: pb.ReadDirRequest, call: ServerCall) -> pb.ReadDirResponse:
        found = await self.bridge.containers.read_dir(
            request.Ref, request.MountIndex, request.DirPath, pattern=request.IncludePattern
        )
        return pb.ReadDirResponse(entries=found)

    async def _stat_file_container(self, request: pb.StatFileRequest, call: ServerCall) -> pb.StatFileResponse:
        found = await self.bridge.containers.stat_file(request.Ref, request.MountIndex, request.Path)
        return pb.StatFileResponse(stat=found)

    # -- sources

    async def _resolve_image_config(
        self, request: pb.ResolveImageConfigRequest, call: ServerCall
    ) -> pb.ResolveImageConfigResponse:
        store = OciStore(session=request.SessionID, store=request.StoreID) if request.ResolverType == 1 else None
        found = await self.bridge.resolve_image(
            request.Ref,
            platform=from_pb(request.Platform) if request.HasField("Platform") else None,
            mode=request.ResolveMode or "default",
            log_name=request.LogName,
            store=store,
            check=_policy(request),
        )
        found.of(request.Ref)
        return pb.ResolveImageConfigResponse(Ref=found.ref, Digest=found.digest, Config=found.config)

    async def _resolve_source_meta(self, request: pb.ResolveSourceMetaRequest, call: ServerCall) -> pb.ResolveSourceMetaResponse:
        return await self.source_meta(request)

    async def source_meta(self, request: pb.ResolveSourceMetaRequest, *, unchecked: bool = False) -> pb.ResolveSourceMetaResponse:
        """`unchecked` is for a source policy that asks before it decides."""
        answer = pb.ResolveSourceMetaResponse(Source=request.Source)
        scheme, _, name = request.Source.identifier.partition("://")
        if scheme in ("docker-image", "oci-layout"):
            await self._image_meta(request, answer, scheme, name, unchecked)
            return answer
        source, found = await self.bridge.whole_meta(
            request.Source,
            return_object=request.Git.ReturnObject,
            suffixed=_suffixed(request),
            check=_policy(request),
            unchecked=unchecked,
        )
        answer.Source.CopyFrom(source)
        if scheme == "git":
            answer.Git.Checksum, answer.Git.Ref = found.checksum, found.ref
            answer.Git.CommitChecksum = found.commit_checksum
            answer.Git.CommitObject = found.commit_object or b""
            answer.Git.TagObject = found.tag_object or b""
        elif scheme in ("http", "https"):
            answer.HTTP.Checksum, answer.HTTP.Filename = found.checksum, found.filename
            if found.suffixed_checksum:
                answer.HTTP.ChecksumResponse.Digest = found.suffixed_checksum
                answer.HTTP.ChecksumResponse.Suffix = request.HTTP.ChecksumRequest.Suffix
            if found.last_modified is not None:
                answer.HTTP.LastModified.FromSeconds(found.last_modified)
        return answer

    async def _image_meta(
        self,
        request: pb.ResolveSourceMetaRequest,
        answer: pb.ResolveSourceMetaResponse,
        scheme: str,
        name: str,
        unchecked: bool,
    ) -> None:
        attrs = request.Source.attrs
        store = None
        if scheme == "oci-layout":
            store = OciStore(session=attrs.get("oci.session", ""), store=attrs.get("oci.store", ""))
        platform = from_pb(request.Platform) if request.HasField("Platform") else None
        mode = request.ResolveMode or attrs.get("image.resolvemode", "") or "default"
        found = await self.bridge.resolve_image(
            name,
            platform=platform,
            mode=mode,
            log_name=request.LogName,
            store=store,
            check=_policy(request),
            unchecked=unchecked,
        )
        if "://" in found.ref:  # a source policy made something else of the image: whoever asked has to look at that
            answer.Source.identifier = found.ref
            return
        if found.ref != name:
            answer.Source.identifier = f"{scheme}://{found.ref}"
        answer.Image.Digest = found.digest
        if not request.Image.NoConfig:
            answer.Image.Config = found.config
        wanted = list(request.Image.ResolveAttestations)
        if store is None and (request.Image.AttestationChain or wanted):
            chain = await self.bridge.attestation_chain(found.ref, platform=platform, mode=mode, predicates=wanted)
            if chain is not None:
                answer.Image.AttestationChain.CopyFrom(chain_message(chain))


def _suffixed(request: pb.ResolveSourceMetaRequest) -> tuple[str, bytes] | None:
    """Raises UsageError for what cannot be asked."""
    if not request.HTTP.HasField("ChecksumRequest"):
        return None
    asked = request.HTTP.ChecksumRequest
    if len(asked.Suffix) > _MOST_SUFFIX_BYTES:
        raise UsageError(f"http checksum request suffix exceeds max size {_MOST_SUFFIX_BYTES}")
    algorithm = _ALGORITHMS.get(asked.Algo)
    if algorithm is None:
        raise UsageError(f"unsupported checksum algorithm {asked.Algo}")
    return algorithm, asked.Suffix


def _policy(request: pb.SolveRequest | pb.ResolveImageConfigRequest | pb.ResolveSourceMetaRequest) -> SourcePolicy | None:
    """What a frontend asks of the sources of this one request."""
    return SourcePolicy(request.SourcePolicies) if request.SourcePolicies else None


__all__ = ["METHODS", "Gateway"]
