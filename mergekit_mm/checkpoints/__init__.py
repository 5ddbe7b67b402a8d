"""The inputs of a merge as they are on disk: files, headers, tensors by name and role, and how two models match.

Where a model is, and its files:

- `hub`: the local directory of a model or adapter, fetched from the hub if need be
- `remote`: models of the hub of which only headers and small files are fetched
- `disk`: the tensors in the files of a checkpoint, from the headers alone
- `weight_files`: files of weights beside those of the model, and what tensors they hold
- `file_patterns`: names of files that are no part of a model, such as other formats and leftovers of training
- `quantization`: refuses quantized weights
- `tokenizer`: loads a tokenizer

The tensors of one checkpoint:

- `checkpoint`: `open_checkpoint` and `Checkpoint`, which the files below serve
- `meta_model`: the model of a config, instantiated without storage
- `roles`: which part of a multimodal model each tensor belongs to
- `weight_names`: names on disk and in memory, and the conversion between the two
- `expert_stacks`: stacks of expert matrices on disk and in memory, taken apart by experts
- `unwrapping`: checkpoints that were saved with PEFT still around the model; `wrapping` knows the names, `lora_scaling`
  the scaling of factors, `bare_parameters` the rules for parameters without a module
- `describe`: the description of a checkpoint for `mergekit-mm inspect`
- `values`: whether two tensors hold the same values
- `mapped`: values of files, fetched so that a disk that fails is an error

Two checkpoints:

- `matching`: which tensor of an input stands for which of the base
- `submodels`: models that are a part of another model
- `hyperparameters`: language models that compute otherwise with the same shapes
- `ignoring`: tensors that a config leaves out by name
- `mismatch`: why a checkpoint lacks tensors

`listing` formats names and sizes for messages; `transformers_private` holds all private names of transformers. The
rooms `adapters` (PEFT adapters) and `side_files` (files beside the weights) build on this one.

May import `omni` (its configuration and registration), `numerics` and `errors`, but no planning, tasks or methods. The
files here import neither `adapters` nor `side_files`, and these two do not import each other.
"""
