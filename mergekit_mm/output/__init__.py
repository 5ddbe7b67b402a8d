"""What makes the written tensors a usable model: config, side files, model card, load check, a safe directory."""
