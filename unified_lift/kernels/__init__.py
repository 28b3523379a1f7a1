"""Operations that have a fast version: each file holds the definition, the kernel and their dispatch."""
