"""What a merge will do, as data: from a config and opened inputs to a `MergePlan`. Nothing here runs or writes.

The plan itself:

- `tensor_plan`: `TensorPlan`, what is done with one tensor; the actions Keep, Average, Merge, Copy and Route
- `merge_plan`: `MergePlan` and `OmniPlan`, all tensors of an output; what people read of them is said here
- `outputs`: under which names on disk the planned tensors are written
- `side_files`: the files that an output gets beside its weights
- `summary`, `usage`, `as_json`: lines by role, what of the inputs is not used, and the plan as JSON

How it comes about, in this order:

- `config`, `keys`, `parameters`: the config is read, its keys and parameters are checked
- `scope`: which merges are planned here at all, and not by mergekit
- `inputs`: every input is opened and matched with the base; `beside` finds adapters and files beside the weights,
  `unchanged` inputs that add nothing, `inspection` describes one input for `mergekit-mm inspect`
- `modules`, `walk`: the tensors of the output one by one, through modules, slices and layers
- `policies`, `constants`, `decisions`: what is done with each tensor, and why
- `build`: all of it in order; `omni/build` is the second builder, for models composed of several architectures

May import `checkpoints`, `methods` (what methods declare about themselves), `omni` (its configuration) and of mergekit
what a config is made of. May not import `tasks`: a plan holds no tensor, and no task decides.
"""
