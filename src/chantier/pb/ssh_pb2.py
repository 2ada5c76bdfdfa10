# SPDX-License-Identifier: Apache-2.0
# Made by scripts/gen-pb from chantier/pb/ssh.proto; not to be edited.
from chantier.pb import describe

describe(
    globals(),
    (),
    b'\n\x15chantier/pb/ssh.proto\x12\x12moby.sshforward.v1"\x1c\n\x0cBytesMessage\x12\x0c\n\x04data\x18\x01 \x01(\x0c"\x1f\n\x11CheckAgentRequest\x12\n\n\x02ID\x18\x01 \x01(\t"\x14\n\x12CheckAgentResponse2\xba\x01\n\x03SSH\x12[\n\nCheckAgent\x12%.moby.sshforward.v1.CheckAgentRequest\x1a&.moby.sshforward.v1.CheckAgentResponse\x12V\n\x0cForwardAgent\x12 .moby.sshforward.v1.BytesMessage\x1a .moby.sshforward.v1.BytesMessage(\x010\x01b\x06proto3',
)
