"""Telling others that a job has ended: signed, at least once, by workers' own threads."""
