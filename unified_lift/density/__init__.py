"""Adding and removing Gaussians during the geometry stage."""
