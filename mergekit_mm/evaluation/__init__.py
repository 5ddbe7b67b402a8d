"""Evaluation of multimodal models by lm-eval.

- `tasks`: what the task files of `eval_tasks` call: documents, prompts, metrics
- `model`: the lm-eval model `mllm`
- `report`: tables, figures and pages of results that lm-eval has written

May import lm-eval and transformers, and of this package `omni`, `checkpoints` and `errors`; `model` imports `tasks`.
Nothing here plans or runs merges, and merging imports nothing from here.
"""
