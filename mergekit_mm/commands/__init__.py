"""Commands of `mergekit-mm` that have many options: `align`, `push`, `tune`; `common`: what all commands share.

Imports of what takes time are in the functions, so that `--help` is instant. May import whatever the command line may.
"""
