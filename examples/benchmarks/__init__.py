"""Time, memory and numerical error of merges."""
