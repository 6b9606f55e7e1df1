"""CM3's loss: alignment and calibrated uniformity over the global batch."""
