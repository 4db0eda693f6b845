"""Exports: a version as a zip that other programs run without Graft."""
