"""From raw interactions to a clean, split data set."""
