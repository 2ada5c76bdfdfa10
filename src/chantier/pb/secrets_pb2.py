# SPDX-License-Identifier: Apache-2.0
# Made by scripts/gen-pb from chantier/pb/secrets.proto; not to be edited.
from chantier.pb import describe

describe(
    globals(),
    (),
    b'\n\x19chantier/pb/secrets.proto\x12\x18moby.buildkit.secrets.v1"\xa4\x01\n\x10GetSecretRequest\x12\n\n\x02ID\x18\x01 \x01(\t\x12P\n\x0bannotations\x18\x02 \x03(\x0b2;.moby.buildkit.secrets.v1.GetSecretRequest.AnnotationsEntry\x1a2\n\x10AnnotationsEntry\x12\x0b\n\x03key\x18\x01 \x01(\t\x12\r\n\x05value\x18\x02 \x01(\t:\x028\x01"!\n\x11GetSecretResponse\x12\x0c\n\x04data\x18\x01 \x01(\x0c2o\n\x07Secrets\x12d\n\tGetSecret\x12*.moby.buildkit.secrets.v1.GetSecretRequest\x1a+.moby.buildkit.secrets.v1.GetSecretResponseb\x06proto3',
)
