"""Writes the split and the features of a prepared folder in the formats of other programs."""
