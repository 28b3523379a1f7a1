"""Training: one loop, three stages (geometry, lift, refine), their batches and optimizers."""
