from chantier.pb import control_pb2 as _control_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RecordRequest(_message.Message):
    __slots__ = ("ref",)
    REF_FIELD_NUMBER: _ClassVar[int]
    ref: str
    def __init__(self, ref: _Optional[str] = ...) -> None: ...

class CacheMountsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MoveCacheMountRequest(_message.Message):
    __slots__ = ("name", "place", "session", "limit")
    class PlaceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    name: str
    place: _containers.ScalarMap[str, str]
    session: str
    limit: int
    def __init__(self, name: _Optional[str] = ..., place: _Optional[_Mapping[str, str]] = ..., session: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class KnownLayersRequest(_message.Message):
    __slots__ = ("exporter", "metadata", "diff_ids")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    EXPORTER_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    DIFF_IDS_FIELD_NUMBER: _ClassVar[int]
    exporter: int
    metadata: _containers.ScalarMap[str, str]
    diff_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, exporter: _Optional[int] = ..., metadata: _Optional[_Mapping[str, str]] = ..., diff_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class KnownLayersResponse(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...
