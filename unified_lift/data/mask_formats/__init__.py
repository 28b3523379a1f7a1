"""How segment masks are stored: one file per format, found by its `FORMAT`."""
