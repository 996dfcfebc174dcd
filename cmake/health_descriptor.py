"""Writes the contract of gRPC's health service as a descriptor set: health_descriptor.py OUT. See gaekju_proto()."""

import sys

from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2

contract = descriptor_pb2.FileDescriptorProto.FromString(health_pb2.DESCRIPTOR.serialized_pb)
contract.name = "grpc_health/v1/health.proto"
with open(sys.argv[1], "wb") as out:
    out.write(descriptor_pb2.FileDescriptorSet(file=[contract]).SerializeToString())
