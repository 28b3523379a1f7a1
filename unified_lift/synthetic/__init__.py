"""The synthetic scene: a procedural room, photographed exactly, with masks as unsure as those of a 2D model."""
