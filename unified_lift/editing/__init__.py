"""Scenes as collections of objects: choose, change and export them."""
