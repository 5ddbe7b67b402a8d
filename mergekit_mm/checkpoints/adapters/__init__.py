"""PEFT adapters among the inputs: opened, matched with the model that they are put on, read as task vectors.

- `opening`: what each key of an adapter's files means; refuses what is more than base + scaling * B A
- `adapter`: one opened adapter, and what it changes of each tensor
- `assembly`: the same for tensors that the adapter changes in parts, or as a stack of matrices
- `base_names`: whether the base that an adapter names is the model that it is put on
- `naming`: which tensors of a model an adapter means by its names
- `tied`: copies of tied tensors in an adapter
- `binding`: all of these in one step; the result is an `Adaptation`
- `embedded`: directories that hold a model and its adapter
- `whole`: modules that an adapter can hold whole; used where adapters are written

May import `checkpoints` beside it, and `numerics`. `checkpoints` does not import this room.
"""
