"""A plan's work: in units that can be done anywhere and again, written in place, noted in a journal.

- `layout`: the output's files before any value is known: names, headers, and the byte range of every tensor
- `files`: these files on disk, at their full size from the start, and tensors written into their ranges
- `units`: the tensors that are made in one go, from the plan alone
- `prefetch`: the inputs of the next unit, asked for in advance
- `making`: how a unit is made; `workers`: units made in this process, in several, or by several GPUs
- `preparing`: from a plan to where work can begin; `elsewhere`: units made by processes that plan the merge by
  themselves; `ray_cluster`, which sends units to these
- `journal`: what is done, so that it need not be done again; `key`: what a journal is about
- `staging`: the directory in which an output is made, its lock, and the move into place; `leftovers`, what
  interrupted merges have left
- `models`: the models of a merge, from plan to written weights; `results`: values by name, for an adapter;
  `values`: tensors in memory, for what writes no model of its own
- `input_hashes`: the SHA-256 of the inputs, taken while the merge runs; `unchanged`: that they stay what they were
- `estimate`: what a merge will take; `progress`, what it tells while it runs
- `settings`: how many workers, whether to start afresh, how progress is told

May import `tasks`, `output`, `plan`, `checkpoints` and `methods`.
"""
