"""A plan as work: the tasks of mergekit's graph, and their execution. The one room that reaches into mergekit's inside.

- `compile`: `Compiler`, from a plan to the tasks that write a model at any strength, or give its deltas over the base
- `reading`: the tasks that read what planned tensors are made of, one input or several together; from `sources` and
  `loading`: open inputs, and the tasks that read a tensor, or an adapter's change of it
- `rows`, `tokenizer`: the tasks that move rows of embeddings and heads to another vocabulary
- `deltas`: from inputs to task vectors to base plus delta, for the plugin's methods and sums of adapters; `damc`: the
  factors of owners; `solutions`: merged deltas in files, for merges that differ in strength alone
- `measuring`: the experts' task vectors looked at, and nothing made of them
- `merging`: the tasks of mergekit's own methods; `blocks`: sums in parts that stay in the cache; `inputs_check` has the
  cases in which no method may compute
- `drawing`: random numbers that depend on seed, name and values alone
- `writing`: the layout on disk, and the cast at the end
- `chat_template`: mergekit's `chat_template:`
- `executors`: mergekit's executor, which runs the tasks; `step`: the base class of most tasks

May import `plan`, `checkpoints`, `methods` and `numerics`. pyproject.toml has the versions of mergekit that fit.
"""
