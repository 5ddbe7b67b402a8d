"""Everything of a model but its weights: what an output needs of it, takes along, and does not agree about."""
