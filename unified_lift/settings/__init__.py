"""Settings as trees of frozen dataclasses, and the presets that the package ships."""
