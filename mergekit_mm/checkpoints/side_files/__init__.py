"""The files of a model beside its weights: which of them a merge copies, what an output lacks, where inputs disagree.

- `inventory`: which files and folders of a directory are copied, and which are left out
- `model_files`: the side files of one model, looked up by name and read once
- `generation`, `processors`, `tokens`, `code`: what single kinds of these files say, and how those of two models differ
- `comparison`: all differences between the files of the inputs and those of the output, as notes
- `needs`: files without which the output could not be loaded, taken from inputs that have them

May import `checkpoints` beside it. `checkpoints` does not import this room.
"""
