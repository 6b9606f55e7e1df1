"""A rank's share of the graph, and the linear operators on it."""
