"""Own photos on their way to a scene: camera poses, masks, and a check of what the scene holds."""
