"""From a rank's shard to step plans: batches, negatives, exchanges, prefetch."""
