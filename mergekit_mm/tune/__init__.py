"""`mergekit-mm tune`: the merge method and the strength that do best on validation data, found without writing models.

- `candidates`: from a merge config to the configs of all methods and strengths
- `scores`: values of single questions, their means with standard errors, and paired differences
- `halving`: which candidate is asked how many questions, and which go on
- `judges`: what candidates are measured by: questions of lm-eval's tasks, or the divergence from the experts
- `in_memory`: one loaded model that becomes each candidate in turn
- `kept`: values that an interrupted run leaves for the next one
- `race`: all rounds: candidates become the model, are asked and judged, and the better half goes on
- `report`, `figure`: the table, the figure, and what can be said about the choice
- `run`: all steps in order, from a merge config to the directory with the best config

May import the rooms that plan and run merges, `align` for its divergence, and of `evaluation` the model `mllm`. Beside
the commands, `analysis` imports the candidates.
"""
