"""Proofs that nothing is lost: histories, named points, mutants, full disks, drains."""
