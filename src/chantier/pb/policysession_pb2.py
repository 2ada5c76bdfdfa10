# SPDX-License-Identifier: Apache-2.0
# Made by scripts/gen-pb from chantier/pb/policysession.proto; not to be edited.
from chantier.pb import describe

describe(
    globals(),
    ('ops_pb2', 'gateway_pb2', 'sourcepolicy_pb2'),
    b'\n\x1fchantier/pb/policysession.proto\x12+moby.buildkit.v1.sourcepolicy.policysession\x1a\x15chantier/pb/ops.proto\x1a\x19chantier/pb/gateway.proto\x1a\x1echantier/pb/sourcepolicy.proto"\x80\x02\n\x12CheckPolicyRequest\x12\x1e\n\x08Platform\x18\x01 \x01(\x0b2\x0c.pb.Platform\x12D\n\x06Source\x18\x02 \x01(\x0b24.moby.buildkit.v1.frontend.ResolveSourceMetaResponse\x12W\n\x04caps\x18\x03 \x03(\x0b2I.moby.buildkit.v1.sourcepolicy.policysession.CheckPolicyRequest.CapsEntry\x1a+\n\tCapsEntry\x12\x0b\n\x03key\x18\x01 \x01(\t\x12\r\n\x05value\x18\x02 \x01(\x08:\x028\x01"\xba\x01\n\x13CheckPolicyResponse\x12Q\n\x08decision\x18\x01 \x01(\x0b2=.moby.buildkit.v1.sourcepolicy.policysession.DecisionResponseH\x00\x12F\n\x07request\x18\x02 \x01(\x0b23.moby.buildkit.v1.frontend.ResolveSourceMetaRequestH\x00B\x08\n\x06result"\xbd\x01\n\x10DecisionResponse\x12;\n\x06action\x18\x01 \x01(\x0e2+.moby.buildkit.v1.sourcepolicy.PolicyAction\x12N\n\x0cdenyMessages\x18\x02 \x03(\x0b28.moby.buildkit.v1.sourcepolicy.policysession.DenyMessage\x12\x1c\n\x06update\x18\x03 \x01(\x0b2\x0c.pb.SourceOp"\x1e\n\x0bDenyMessage\x12\x0f\n\x07message\x18\x01 \x01(\t2\xa3\x01\n\x0ePolicyVerifier\x12\x90\x01\n\x0bCheckPolicy\x12?.moby.buildkit.v1.sourcepolicy.policysession.CheckPolicyRequest\x1a@.moby.buildkit.v1.sourcepolicy.policysession.CheckPolicyResponseb\x06proto3',
)
