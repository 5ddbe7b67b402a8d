"""The plan of an omni model: one language model merged from those of its donors, and each donor's towers around it.

- `composition`: which donor is the host, which are guests, and which of them owns each modality
- `vocabulary`: the union of the donors' tokens
- `layout`: the tensors of the omni model, and the donors' tensors that each is made from
- `model`, `processor`: the config of the omni model, the tensors that it will load, and its processor
- `damc`: routes, by which tokens of a modality go through their donor's own matrices
- `build`: the plan from all of these

May import what `plan` may.
"""
