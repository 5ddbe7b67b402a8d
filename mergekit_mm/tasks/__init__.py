"""A plan as work: the tasks of mergekit's graph, and their execution. The one room that reaches into mergekit's inside.

- `compile`: `Compiler`, from a plan to tasks: to a model on disk at any strength, or to what it changes of its base
- `sources`, `loading`: open inputs, and the steps that read a tensor, or what an adapter changes of it
- `rows`, `tokenizer`: the steps that move rows of embeddings and heads to another vocabulary
- `deltas`: the road of a delta, for the plugin's methods and sums of adapters; `damc` for factors of owners
- `merging`: the steps of mergekit's own methods; `inputs_check` has the cases in which none may compute
- `drawing`: random numbers that depend on seed, name and values alone
- `writing`: the layout on disk, the cast at the end, and the output files
- `chat_template`: mergekit's `chat_template:`
- `executors`: mergekit's executors, which run the tasks; `step` is what most tasks are

May import `plan`, `checkpoints`, `methods` and `numerics`. The versions of mergekit that it fits are in pyproject.toml.
"""
