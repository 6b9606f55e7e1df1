"""Full ranking of the catalogue and its metrics."""
