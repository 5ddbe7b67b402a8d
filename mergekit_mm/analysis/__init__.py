"""What can be said of a merge's experts before it is run, from their weights alone: `mergekit-mm inspect CONFIG`.

- `run`: from a config to an `Analysis`, tensor by tensor, by the tasks of the merge itself
- `measure`: the figures of one tensor; `methods`: what a few methods would make of it; `cost`: what looking takes
- `places`: the layer and the part of a tensor; `groups`: several tensors taken together as one vector
- `outliers`, `advice`: what stands out, and what to do, each with its reason
- `text`, `as_json`, `page`: the same for terminals, programs and browsers; `numbers`: as these show them

May import everything that a merge may, the candidates of `tune`, and `pages`.
"""
