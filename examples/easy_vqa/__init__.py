"""Three experts on questions about one image, and their merges."""
