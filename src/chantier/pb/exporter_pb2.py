# SPDX-License-Identifier: Apache-2.0
# Made by scripts/gen-pb from chantier/pb/exporter.proto; not to be edited.
from chantier.pb import describe

describe(
    globals(),
    (),
    b'\n\x1achantier/pb/exporter.proto\x12\x10moby.exporter.v1"\x9d\x01\n\x14FindExportersRequest\x12F\n\x08metadata\x18\x01 \x03(\x0b24.moby.exporter.v1.FindExportersRequest.MetadataEntry\x12\x0c\n\x04refs\x18\x02 \x03(\t\x1a/\n\rMetadataEntry\x12\x0b\n\x03key\x18\x01 \x01(\t\x12\r\n\x05value\x18\x02 \x01(\x0c:\x028\x01"M\n\x15FindExportersResponse\x124\n\texporters\x18\x01 \x03(\x0b2!.moby.exporter.v1.ExporterRequest"\x8a\x01\n\x0fExporterRequest\x12\x0c\n\x04Type\x18\x01 \x01(\t\x12;\n\x05Attrs\x18\x02 \x03(\x0b2,.moby.exporter.v1.ExporterRequest.AttrsEntry\x1a,\n\nAttrsEntry\x12\x0b\n\x03key\x18\x01 \x01(\t\x12\r\n\x05value\x18\x02 \x01(\t:\x028\x01"\xaa\x01\n\x15FinalizeExportRequest\x12X\n\x11exporter_response\x18\x01 \x03(\x0b2=.moby.exporter.v1.FinalizeExportRequest.ExporterResponseEntry\x1a7\n\x15ExporterResponseEntry\x12\x0b\n\x03key\x18\x01 \x01(\t\x12\r\n\x05value\x18\x02 \x01(\t:\x028\x01"\x18\n\x16FinalizeExportResponse2\xd1\x01\n\x08Exporter\x12`\n\rFindExporters\x12&.moby.exporter.v1.FindExportersRequest\x1a\'.moby.exporter.v1.FindExportersResponse\x12c\n\x0eFinalizeExport\x12\'.moby.exporter.v1.FinalizeExportRequest\x1a(.moby.exporter.v1.FinalizeExportResponseb\x06proto3',
)
