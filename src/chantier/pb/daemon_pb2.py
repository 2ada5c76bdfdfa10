# SPDX-License-Identifier: Apache-2.0
# Made by scripts/gen-pb from chantier/pb/daemon.proto; not to be edited.
from chantier.pb import describe

describe(
    globals(),
    ('control_pb2',),
    b'\n\x18chantier/pb/daemon.proto\x12\x0bchantier.v1\x1a\x19chantier/pb/control.proto"\x0f\n\rStatusRequest"\x1c\n\rRecordRequest\x12\x0b\n\x03ref\x18\x01 \x01(\t2\x94\x01\n\x06Daemon\x12D\n\x06Status\x12\x1a.chantier.v1.StatusRequest\x1a\x1e.moby.buildkit.v1.BytesMessage\x12D\n\x06Record\x12\x1a.chantier.v1.RecordRequest\x1a\x1e.moby.buildkit.v1.BytesMessageb\x06proto3',
)
