# SPDX-License-Identifier: Apache-2.0
# Made by scripts/gen-pb from chantier/pb/trace.proto; not to be edited.
from chantier.pb import describe

describe(
    globals(),
    (),
    b'\n\x17chantier/pb/trace.proto\x12&opentelemetry.proto.collector.trace.v1"3\n\x19ExportTraceServiceRequest\x12\x16\n\x0eresource_spans\x18\x01 \x03(\x0c"\x1c\n\x1aExportTraceServiceResponse2\xa0\x01\n\x0cTraceService\x12\x8f\x01\n\x06Export\x12A.opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest\x1aB.opentelemetry.proto.collector.trace.v1.ExportTraceServiceResponseb\x06proto3',
)
