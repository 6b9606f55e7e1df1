"""The training loop, the trainer, its state and the run folder."""
