"""Checkpoints of the official repository, in and out: all of its names stand here."""
