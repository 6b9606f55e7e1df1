"""Full ranking over the catalogue, and its metrics."""
