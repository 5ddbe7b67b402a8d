"""Evaluation of multimodal models by lm-eval: tasks and metrics, the model `mllm`, and reports of results."""
