"""A benchmark of merge methods in miniature: five capabilities on real material, experts of a small model, merges."""
