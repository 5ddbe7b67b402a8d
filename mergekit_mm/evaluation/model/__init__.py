"""The lm-eval model `mllm`: how prompts and media reach any multimodal model, and its answers come back."""
