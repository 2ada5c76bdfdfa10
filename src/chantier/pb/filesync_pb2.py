# SPDX-License-Identifier: Apache-2.0
# Made by scripts/gen-pb from chantier/pb/filesync.proto; not to be edited.
from chantier.pb import describe

describe(
    globals(),
    ('fsutil_pb2',),
    b'\n\x1achantier/pb/filesync.proto\x12\x10moby.filesync.v1\x1a\x18chantier/pb/fsutil.proto"\x1c\n\x0cBytesMessage\x12\x0c\n\x04data\x18\x01 \x01(\x0c2\x83\x01\n\x08FileSync\x12:\n\x08DiffCopy\x12\x14.fsutil.types.Packet\x1a\x14.fsutil.types.Packet(\x010\x01\x12;\n\tTarStream\x12\x14.fsutil.types.Packet\x1a\x14.fsutil.types.Packet(\x010\x012Z\n\x08FileSend\x12N\n\x08DiffCopy\x12\x1e.moby.filesync.v1.BytesMessage\x1a\x1e.moby.filesync.v1.BytesMessage(\x010\x01b\x06proto3',
)
