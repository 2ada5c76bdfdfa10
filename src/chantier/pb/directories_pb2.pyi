from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class LocateRequest(_message.Message):
    __slots__ = ("name", "pid", "fd")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    FD_FIELD_NUMBER: _ClassVar[int]
    name: str
    pid: int
    fd: int
    def __init__(self, name: _Optional[str] = ..., pid: _Optional[int] = ..., fd: _Optional[int] = ...) -> None: ...

class Location(_message.Message):
    __slots__ = ("session", "name", "path", "device", "inode", "mounts", "root_device", "root_inode")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    MOUNTS_FIELD_NUMBER: _ClassVar[int]
    ROOT_DEVICE_FIELD_NUMBER: _ClassVar[int]
    ROOT_INODE_FIELD_NUMBER: _ClassVar[int]
    session: str
    name: str
    path: bytes
    device: int
    inode: int
    mounts: str
    root_device: int
    root_inode: int
    def __init__(self, session: _Optional[str] = ..., name: _Optional[str] = ..., path: _Optional[bytes] = ..., device: _Optional[int] = ..., inode: _Optional[int] = ..., mounts: _Optional[str] = ..., root_device: _Optional[int] = ..., root_inode: _Optional[int] = ...) -> None: ...

class LocateResponse(_message.Message):
    __slots__ = ("location", "mac", "refusal")
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    location: bytes
    mac: bytes
    refusal: str
    def __init__(self, location: _Optional[bytes] = ..., mac: _Optional[bytes] = ..., refusal: _Optional[str] = ...) -> None: ...
