"""What a merge will do, as data: from a config and opened inputs to a `MergePlan`. Nothing here runs or writes.

The plan itself:

- `tensor_plan`: `TensorPlan`, the plan of one tensor; the actions Keep, Average, Merge, Copy and Route
- `merge_plan`: `MergePlan` and `OmniPlan`, the plans of all tensors of an output, and their text for people
- `outputs`: the names on disk under which the planned tensors are written
- `parts`: stacks of experts that are made in parts
- `side_files`: the files that an output gets beside its weights
- `summary`, `usage`, `as_json`: a line for each role, the unused parts of the inputs, and the plan as JSON

How it is made, in this order:

- `scope`: whether a merge is planned here at all, and not by mergekit
- `config`, `keys`, `parameters`: the config is read, its keys and parameters are checked
- `opening`, `inputs`: every input is opened and matched with the base; `beside` finds adapters and files beside the
  weights, `unchanged` finds inputs that add nothing, `inspection` describes one input for `mergekit-mm inspect`
- `modules`, `walk`: the tensors of the output one by one, through modules, slices and layers
- `policies`, `constants`, `decisions`: the action for each tensor, and the reason for it
- `build`: all steps in order; `omni/build` is the second builder, for models composed of several architectures

May import `checkpoints`, `methods` (what methods declare about themselves), `omni` (its configuration) and of mergekit
what a config is made of. May not import `tasks`: a plan holds no tensor, and no task decides.
"""
