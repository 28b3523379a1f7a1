"""The model folder: settings, saved scene, labels, checkpoints, and looking at a trained scene."""
