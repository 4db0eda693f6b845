"""Bytes and modules: weights, backbones, blobs, pixels, artifacts, inference. Knows no jobs."""
