# SPDX-License-Identifier: Apache-2.0
# Made by scripts/gen-pb from chantier/pb/daemon.proto; not to be edited.
from chantier.pb import describe

describe(
    globals(),
    ('control_pb2',),
    b'\n\x18chantier/pb/daemon.proto\x12\x0bchantier.v1\x1a\x19chantier/pb/control.proto"\x0f\n\rStatusRequest"\x1c\n\rRecordRequest\x12\x0b\n\x03ref\x18\x01 \x01(\t"\x14\n\x12CacheMountsRequest"\xb1\x01\n\x15MoveCacheMountRequest\x12\x0c\n\x04name\x18\x01 \x01(\t\x12<\n\x05place\x18\x02 \x03(\x0b2-.chantier.v1.MoveCacheMountRequest.PlaceEntry\x12\x0f\n\x07session\x18\x03 \x01(\t\x12\r\n\x05limit\x18\x04 \x01(\x03\x1a,\n\nPlaceEntry\x12\x0b\n\x03key\x18\x01 \x01(\t\x12\r\n\x05value\x18\x02 \x01(\t:\x028\x01"\xaa\x01\n\x12KnownLayersRequest\x12\x10\n\x08exporter\x18\x01 \x01(\r\x12?\n\x08metadata\x18\x02 \x03(\x0b2-.chantier.v1.KnownLayersRequest.MetadataEntry\x12\x10\n\x08diff_ids\x18\x03 \x03(\t\x1a/\n\rMetadataEntry\x12\x0b\n\x03key\x18\x01 \x01(\t\x12\r\n\x05value\x18\x02 \x01(\t:\x028\x01"$\n\x13KnownLayersResponse\x12\r\n\x05count\x18\x01 \x01(\r2[\n\x07Loading\x12P\n\x0bKnownLayers\x12\x1f.chantier.v1.KnownLayersRequest\x1a .chantier.v1.KnownLayersResponse2\x94\x03\n\x06Daemon\x12D\n\x06Status\x12\x1a.chantier.v1.StatusRequest\x1a\x1e.moby.buildkit.v1.BytesMessage\x12D\n\x06Record\x12\x1a.chantier.v1.RecordRequest\x1a\x1e.moby.buildkit.v1.BytesMessage\x12N\n\x0bCacheMounts\x12\x1f.chantier.v1.CacheMountsRequest\x1a\x1e.moby.buildkit.v1.BytesMessage\x12V\n\x10ExportCacheMount\x12".chantier.v1.MoveCacheMountRequest\x1a\x1e.moby.buildkit.v1.BytesMessage\x12V\n\x10ImportCacheMount\x12".chantier.v1.MoveCacheMountRequest\x1a\x1e.moby.buildkit.v1.BytesMessageb\x06proto3',
)
