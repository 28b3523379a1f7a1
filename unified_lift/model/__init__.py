"""The state that is learnt: Gaussians, codebook, and their files."""
