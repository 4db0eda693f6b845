"""Backup and restore: a consistent copy of rows and files, taken while the service runs."""
