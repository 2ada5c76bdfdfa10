from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class ExportTraceServiceRequest(_message.Message):
    __slots__ = ("resource_spans",)
    RESOURCE_SPANS_FIELD_NUMBER: _ClassVar[int]
    resource_spans: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, resource_spans: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ExportTraceServiceResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
