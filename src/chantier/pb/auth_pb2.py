# SPDX-License-Identifier: Apache-2.0
# Made by scripts/gen-pb from chantier/pb/auth.proto; not to be edited.
from chantier.pb import describe

describe(
    globals(),
    (),
    b'\n\x16chantier/pb/auth.proto\x12\x10moby.filesync.v1""\n\x12CredentialsRequest\x12\x0c\n\x04Host\x18\x01 \x01(\t"7\n\x13CredentialsResponse\x12\x10\n\x08Username\x18\x01 \x01(\t\x12\x0e\n\x06Secret\x18\x02 \x01(\t"c\n\x11FetchTokenRequest\x12\x10\n\x08ClientID\x18\x01 \x01(\t\x12\x0c\n\x04Host\x18\x02 \x01(\t\x12\r\n\x05Realm\x18\x03 \x01(\t\x12\x0f\n\x07Service\x18\x04 \x01(\t\x12\x0e\n\x06Scopes\x18\x05 \x03(\t"H\n\x12FetchTokenResponse\x12\r\n\x05Token\x18\x01 \x01(\t\x12\x11\n\tExpiresIn\x18\x02 \x01(\x03\x12\x10\n\x08IssuedAt\x18\x03 \x01(\x03"6\n\x18GetTokenAuthorityRequest\x12\x0c\n\x04Host\x18\x01 \x01(\t\x12\x0c\n\x04Salt\x18\x02 \x01(\x0c".\n\x19GetTokenAuthorityResponse\x12\x11\n\tPublicKey\x18\x01 \x01(\x0c"J\n\x1bVerifyTokenAuthorityRequest\x12\x0c\n\x04Host\x18\x01 \x01(\t\x12\x0f\n\x07Payload\x18\x02 \x01(\x0c\x12\x0c\n\x04Salt\x18\x03 \x01(\x0c".\n\x1cVerifyTokenAuthorityResponse\x12\x0e\n\x06Signed\x18\x01 \x01(\x0c2\xa0\x03\n\x04Auth\x12Z\n\x0bCredentials\x12$.moby.filesync.v1.CredentialsRequest\x1a%.moby.filesync.v1.CredentialsResponse\x12W\n\nFetchToken\x12#.moby.filesync.v1.FetchTokenRequest\x1a$.moby.filesync.v1.FetchTokenResponse\x12l\n\x11GetTokenAuthority\x12*.moby.filesync.v1.GetTokenAuthorityRequest\x1a+.moby.filesync.v1.GetTokenAuthorityResponse\x12u\n\x14VerifyTokenAuthority\x12-.moby.filesync.v1.VerifyTokenAuthorityRequest\x1a..moby.filesync.v1.VerifyTokenAuthorityResponseb\x06proto3',
)
