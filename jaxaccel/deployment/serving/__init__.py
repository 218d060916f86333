"""Serving: engines behind the Open Inference Protocol v2, by HTTP and gRPC, their requests joined into batches."""
