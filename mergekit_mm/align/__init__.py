"""A merge improved by a few unlabelled samples: the merged model learns to answer as each expert does on its inputs.

- `samples`: questions with media for each expert, drawn and held back by a seed; `folders` and `tasks`: where else than
  in a file they may be
- `settings`: what decides the result, and presets; `job`: one alignment as data; `costs`: what it takes
- `inputs`: a sample, with the tokens of an answer after it, as the tensors of one model
- `answers`: what each expert says, and how probable it finds each token, kept on disk
- `objective`: the divergence of the merged model from the experts at these tokens
- `training`: the optimiser's loop, the gate on samples held back, and going on after an interruption; `recomputing`:
  less memory for it
- `adapter`: the way by a LoRA on the merged model
- `coefficients`: the way by a few numbers per matrix; `basis`: the directions that they are for, on disk; `recipe`: the
  numbers as a merge config
- `finish`: the report, and the section of the model card
- `run`: all steps in order, from a merge config to a finished directory

May import the rooms that plan and run merges, and of `evaluation` the model `mllm` and the media of documents. No other
room but the commands and the interface for programs imports it.
"""
