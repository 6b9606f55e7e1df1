"""Alignment and calibrated uniformity over the global batch."""
