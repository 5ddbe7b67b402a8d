"""What is in a checkpoint: tensors, their roles, and their names on disk and in memory."""
