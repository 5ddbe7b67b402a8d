"""What the plugin puts into mergekit's task graph: steps that read, align, merge and write tensors."""
