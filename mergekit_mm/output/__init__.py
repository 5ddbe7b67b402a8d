"""The finished directory: what makes written weights a model that loads, or an adapter.

- `directory`: an output that is either finished or not there; checks of the place before any work
- `finish`: all that is added to written weights; `omni` for an omni model
- `config_json`: the output's config, the base's own with what the merge changed
- `side_files`: tokenizer, processor and other files, copied or written as planned
- `verify`: whether transformers would load exactly what is planned, and what was written
- `card`: the model card, with the hashes of the inputs
- `adapter_files`: the files of a PEFT adapter

May import `plan`, `checkpoints`, `omni` and `numerics`, not `tasks`: what it needs of these, the caller hands over.
"""
