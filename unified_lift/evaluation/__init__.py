"""Scores of a trained scene and the pictures and pages that show them."""
