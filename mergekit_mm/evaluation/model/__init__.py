"""The lm-eval model `mllm`: how prompts and media reach any multimodal model of transformers, and its answers return.

- `mllm`: the model that lm-eval runs: generation and likelihoods
- `loading`: how it loads config, processor and weights, over the private methods of lm-eval's `hf`
- `internvl`: checkpoints of InternVL in their original form
- `completion`: processors that do not know how many tokens an image takes
- `inputs`: requests become prompts and tensors
- `chat`: prompts, by the chat template or without one
- `batching`: batches of one kind, the next one prepared in a thread
- `likelihood`: where an answer begins, and its logits
- `replies`: a reply with the sizes of the images as the model saw them
- `weights`: a loaded model with other weights
- `run`: unreadable inputs, replies that are cut, answers kept when a run fails, entries of results.json
- `checks`: whether every input can be read and is taken, before the run
- `audio`: how much of an audio input the processor hears
- `found_tasks`: tasks of lm-eval by their names; `questions`: what their documents ask, without the answers;
  `asked_tasks`: some of their documents asked in this process
- `decoding`, `images`, `videos`: media as processors take them
- `thumbnails`: small copies of media, for pages; `shown`: those of a task's documents, by their numbers

The only room that reaches into lm-eval's inside (`lm_eval.models`, private methods of `HFLM`). May import lm-eval and
transformers; of this package `evaluation.tasks`, `omni`, `checkpoints` and `errors`. Not `evaluation.report`, nor any
room that plans or runs merges.
"""
