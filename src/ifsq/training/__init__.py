"""Training: one loop, exact resume, many processes. Knows no image and no model."""
