"""The gRPC transport: bytes in, bytes out, everything else is the dataplane's."""
