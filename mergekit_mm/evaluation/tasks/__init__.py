"""What the tasks in `eval_tasks` are made of: documents, prompts and metrics."""
