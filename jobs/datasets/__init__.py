"""Uploads become validated, immutable, content-addressed datasets."""
