"""Judges a trained model: accuracy in slices, baselines, coverage, novelty, popularity bias, comparisons."""
