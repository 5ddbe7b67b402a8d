"""Evaluation through lm-eval: metrics, documents and prompts of the tasks in `eval_tasks/`."""
