from google.protobuf.any_pb2 import Any as Any
from google.protobuf.empty_pb2 import Empty as Empty
from google.protobuf.field_mask_pb2 import FieldMask as FieldMask
from google.protobuf.timestamp_pb2 import Timestamp as Timestamp
from google.rpc.status_pb2 import Status as Status
