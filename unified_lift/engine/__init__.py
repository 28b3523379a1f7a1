"""Training stages, optimiser, checkpoints, logs."""
