# SPDX-License-Identifier: Apache-2.0
# Made by scripts/gen-pb from chantier/pb/sourcepolicy.proto; not to be edited.
from chantier.pb import describe

describe(
    globals(),
    (),
    b'\n\x1echantier/pb/sourcepolicy.proto\x12\x1dmoby.buildkit.v1.sourcepolicy"\xb6\x01\n\x04Rule\x12;\n\x06action\x18\x01 \x01(\x0e2+.moby.buildkit.v1.sourcepolicy.PolicyAction\x129\n\x08selector\x18\x02 \x01(\x0b2\'.moby.buildkit.v1.sourcepolicy.Selector\x126\n\x07updates\x18\x03 \x01(\x0b2%.moby.buildkit.v1.sourcepolicy.Update"\x8b\x01\n\x06Update\x12\x12\n\nidentifier\x18\x01 \x01(\t\x12?\n\x05attrs\x18\x02 \x03(\x0b20.moby.buildkit.v1.sourcepolicy.Update.AttrsEntry\x1a,\n\nAttrsEntry\x12\x0b\n\x03key\x18\x01 \x01(\t\x12\r\n\x05value\x18\x02 \x01(\t:\x028\x01"\xa0\x01\n\x08Selector\x12\x12\n\nidentifier\x18\x01 \x01(\t\x12<\n\nmatch_type\x18\x02 \x01(\x0e2(.moby.buildkit.v1.sourcepolicy.MatchType\x12B\n\x0bconstraints\x18\x03 \x03(\x0b2-.moby.buildkit.v1.sourcepolicy.AttrConstraint"i\n\x0eAttrConstraint\x12\x0b\n\x03key\x18\x01 \x01(\t\x12\r\n\x05value\x18\x02 \x01(\t\x12;\n\tcondition\x18\x03 \x01(\x0e2(.moby.buildkit.v1.sourcepolicy.AttrMatch"M\n\x06Policy\x12\x0f\n\x07version\x18\x01 \x01(\x03\x122\n\x05rules\x18\x02 \x03(\x0b2#.moby.buildkit.v1.sourcepolicy.Rule*0\n\x0cPolicyAction\x12\t\n\x05ALLOW\x10\x00\x12\x08\n\x04DENY\x10\x01\x12\x0b\n\x07CONVERT\x10\x02*1\n\tAttrMatch\x12\t\n\x05EQUAL\x10\x00\x12\x0c\n\x08NOTEQUAL\x10\x01\x12\x0b\n\x07MATCHES\x10\x02*/\n\tMatchType\x12\x0c\n\x08WILDCARD\x10\x00\x12\t\n\x05EXACT\x10\x01\x12\t\n\x05REGEX\x10\x02b\x06proto3',
)
