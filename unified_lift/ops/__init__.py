"""Pure functions on tensors: segments, matching, cameras, quaternions."""
