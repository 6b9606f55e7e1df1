"""Checkpoints that are whole or absent, and load on any number of ranks."""
