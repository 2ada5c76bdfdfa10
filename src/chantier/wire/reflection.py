# SPDX-License-Identifier: Apache-2.0
"""grpc.reflection.v1 and v1alpha: the descriptions of what a server serves, for tools such as grpcurl."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from chantier.pb import pool, reflection_pb2, reflection_v1alpha_pb2

from .call import ServerCall
from .service import Service
from .status import INVALID_ARGUMENT, NOT_FOUND

NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


def services(names: Callable[[], Iterable[str]]) -> list[Service]:
    """Both versions of the service; `names` tells what the server serves."""
    versions = zip(NAMES, (reflection_pb2, reflection_v1alpha_pb2), strict=True)
    return [Service(name, {"ServerReflectionInfo": _handler(pb, names)}) for name, pb in versions]


def _handler(pb: ModuleType, names: Callable[[], Iterable[str]]) -> Callable[[ServerCall], Any]:
    async def handle(call: ServerCall) -> None:
        sent: set[str] = set()  # files this client has: each is sent once
        async for request in call:
            answer = pb.ServerReflectionResponse(valid_host=request.host, original_request=request)
            try:
                _fill(answer, request, names, sent)
            except KeyError as err:
                answer.error_response.error_code = NOT_FOUND
                answer.error_response.error_message = str(err.args[0]) if err.args else "not found"
            await call.send(answer)

    return handle


def _fill(answer: Any, request: Any, names: Callable[[], Iterable[str]], sent: set[str]) -> None:
    which = request.WhichOneof("message_request")
    if which == "list_services":
        for name in sorted({*names(), *NAMES}):
            answer.list_services_response.service.add(name=name)
    elif which == "file_by_filename":
        _files(answer, pool.FindFileByName(request.file_by_filename), sent)
    elif which == "file_containing_symbol":
        _files(answer, pool.FindFileContainingSymbol(request.file_containing_symbol), sent)
    elif which == "file_containing_extension":
        wanted = request.file_containing_extension
        message = pool.FindMessageTypeByName(wanted.containing_type)
        extension: Any = pool.FindExtensionByNumber(message, wanted.extension_number)
        _files(answer, extension.file, sent)
    elif which == "all_extension_numbers_of_type":
        name = request.all_extension_numbers_of_type
        found = pool.FindAllExtensions(pool.FindMessageTypeByName(name))
        answer.all_extension_numbers_response.base_type_name = name
        answer.all_extension_numbers_response.extension_number.extend(extension.number for extension in found)
    else:
        answer.error_response.error_code = INVALID_ARGUMENT
        answer.error_response.error_message = "an empty request"


def _files(answer: Any, file: Any, sent: set[str]) -> None:
    """A file's description, after those it depends on."""
    answer.file_descriptor_response.SetInParent()
    wanted, queue = {}, [file]
    while queue:
        found = queue.pop()
        if found.name not in wanted:
            wanted[found.name] = found
            queue.extend(found.dependencies)
    for name, found in wanted.items():
        if name not in sent or name == file.name:
            sent.add(name)
            answer.file_descriptor_response.file_descriptor_proto.append(found.serialized_pb)


__all__ = ["NAMES", "services"]
