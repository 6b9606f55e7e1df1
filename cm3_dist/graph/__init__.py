"""What a rank holds of the graph, and the linear operators on it."""
