"""What is in a checkpoint: tensors, their roles, their names on disk and in memory; and how two of them compare."""
