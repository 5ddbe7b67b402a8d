"""The finished directory: the files that turn written weights into a model that loads, or into an adapter.

- `directory`: an output that is either finished or absent; checks of its path before any work
- `finish`: all files that are added to written weights; `omni` for an omni model
- `config_json`: the output's config, which is the base's with the changes that the merge makes
- `side_files`: tokenizer, processor and other files, copied or written as planned
- `verify`: the check that transformers loads exactly the planned tensors, and that these were written
- `card`: the model card, with the hashes of the inputs
- `adapter_files`: the files of a PEFT adapter

May import `plan`, `checkpoints`, `omni` and `numerics`. May not import `tasks`: their results are passed in.
"""
