"""Checkpoints that are saved completely or not at all, and load on any number of ranks."""
