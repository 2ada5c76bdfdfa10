# SPDX-License-Identifier: Apache-2.0
# Made by scripts/gen-pb from chantier/pb/caps.proto; not to be edited.
from chantier.pb import describe

describe(
    globals(),
    (),
    b'\n\x16chantier/pb/caps.proto\x12\x18moby.buildkit.v1.apicaps"\x89\x01\n\x06APICap\x12\n\n\x02ID\x18\x01 \x01(\t\x12\x0f\n\x07Enabled\x18\x02 \x01(\x08\x12\x12\n\nDeprecated\x18\x03 \x01(\x08\x12\x16\n\x0eDisabledReason\x18\x04 \x01(\t\x12\x19\n\x11DisabledReasonMsg\x18\x05 \x01(\t\x12\x1b\n\x13DisabledAlternative\x18\x06 \x01(\tb\x06proto3',
)
