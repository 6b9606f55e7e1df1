"""What a training run needs, before it is started: memory, bytes between ranks, time, disk."""
