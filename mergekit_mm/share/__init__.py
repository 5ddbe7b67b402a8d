"""An output on the hub: its place there is checked before any work, and it is uploaded with a complete card.

| file | what it holds |
|---|---|
| `destination.py` | a repository to upload to: name, token, rights, and what is there already |
| `folder.py` | the files of an output that are uploaded, the card among them |
| `card.py` | the card as it is uploaded: metadata that it lacks, and the results of a report |
| `refusals.py` | errors of the hub and of the network in one line |
| `upload.py` | the upload |

May import `output`, `plan`, `checkpoints` and `errors`.
"""
