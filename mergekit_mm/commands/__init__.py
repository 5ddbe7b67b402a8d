"""Commands of `mergekit-mm` with many options: `align`, `inspect`, `push`, `report`, `tune`; `common`: what all share.

Imports of what takes time are in the functions, so that `--help` is instant. May import whatever the command line may.
"""
