"""From a rank's shard to the plan of a step: batches, negatives, exchange lists, prefetch."""
