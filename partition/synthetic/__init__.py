"""Generated data sets of any size."""
