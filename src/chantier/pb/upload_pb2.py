# SPDX-License-Identifier: Apache-2.0
# Made by scripts/gen-pb from chantier/pb/upload.proto; not to be edited.
from chantier.pb import describe

describe(
    globals(),
    (),
    b'\n\x18chantier/pb/upload.proto\x12\x0emoby.upload.v1"\x1c\n\x0cBytesMessage\x12\x0c\n\x04data\x18\x01 \x01(\x0c2P\n\x06Upload\x12F\n\x04Pull\x12\x1c.moby.upload.v1.BytesMessage\x1a\x1c.moby.upload.v1.BytesMessage(\x010\x01b\x06proto3',
)
