# SPDX-License-Identifier: Apache-2.0
"""Wire messages: what `scripts/gen-pb` makes of the .proto files beside it, and the pool that describes them.

The pool is our own, so that other packages in a process may describe the same names; common_pb2 has the messages of protobuf
itself that ours are made of. A message class is made when it is first asked for. Protobuf's C core is used directly where it is
there: the Python modules that wrap it take ten times as long to import, and are needed for JSON and the like alone.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message


def _native() -> tuple[Any, Any]:
    """A pool, and what makes a class of a message's description. Raises ImportError without the C core."""
    if os.environ.get("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "upb") != "upb":
        raise ImportError("another implementation of protobuf was chosen")
    from google._upb import _message

    def message_class(descriptor: Any) -> Any:
        try:
            return descriptor._concrete_class
        except (SystemError, AttributeError):  # what the core says of one that has none yet
            module = descriptor.file.name.removesuffix(".proto").replace("/", ".") + "_pb2"
            return _message.MessageMeta(descriptor.name, (Message,), {"DESCRIPTOR": descriptor, "__module__": module})

    return _message.DescriptorPool(), message_class


def _portable() -> tuple[Any, Any]:
    from google.protobuf import descriptor_pool, message_factory

    return descriptor_pool.DescriptorPool(), message_factory.GetMessageClass


try:
    pool, message_class = _native()
except ImportError:
    pool, message_class = _portable()


def describe(module: dict[str, Any], needs: tuple[str, ...], *files: bytes) -> None:
    """Make a generated module: `files` are serialized FileDescriptorProtos, `needs` the modules whose files they import."""
    for name in needs:
        import_module(f"{__name__}.{name}")
    found = [pool.AddSerializedFile(data) or pool.FindFileByName(_name(data)) for data in files]
    module["DESCRIPTOR"] = found[-1]
    for file in found:
        for name, enum in file.enum_types_by_name.items():
            module |= {value.name: value.number for value in enum.values}
            module[name] = EnumTypeWrapper(enum)

    def __getattr__(name: str) -> Any:
        for file in found:
            if (descriptor := file.message_types_by_name.get(name)) is not None:
                module[name] = made = message_class(descriptor)
                return made
        raise AttributeError(f"module {module['__name__']!r} has no attribute {name!r}")

    module["__getattr__"] = __getattr__


def _name(data: bytes) -> str:
    """A FileDescriptorProto begins with its name, which is shorter than 128 bytes."""
    return data[2 : 2 + data[1]].decode()


__all__ = ["describe", "message_class", "pool"]
