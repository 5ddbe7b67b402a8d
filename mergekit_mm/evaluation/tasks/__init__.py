"""What the YAML files in `eval_tasks` name by `!function`: documents, prompts, media, and scores of replies.

Documents, from a data set to what the model is asked:

| file | what it holds |
|---|---|
| `sources.py` | where data sets are: the Hub, a mirror on disk, a file; reads them without decoding media |
| `documents.py` | the documents of the image tasks, one function per data set |
| `omni_documents.py` | the documents of AVQA and MUSIC-AVQA, with any mix of video, image and audio |
| `prompts.py` | the wording of prompts, by model family |
| `media.py` | `doc_to_image` and `doc_to_audio`: the media of a document |
| `lazy_images.py` | images that are opened when they are needed, and stand-ins for unreadable ones |
| `grounding.py` | upright images and boxes |
| `missing.py` | the option `missing`: what becomes of documents that cannot be asked |
| `prepared_tasks.py` | the wrapper that makes a task of lm-eval follow this option |

Replies, from the text that a model wrote to scores:

| file | what it holds |
|---|---|
| `scoring.py` | `process_results` and aggregations of the tasks |
| `metrics.py` | the list of the benchmark's metrics |
| `replies.py` | the part of a reply that answers: no thoughts, no invented next question |
| `statements.py` | the parts of it that state the answer |
| `sentences.py` | its sentences |
| `quantities.py` | the numbers in it |
| `stated_answers.py` | the number or the list that it states |
| `options.py`, `option_reader.py` | the option of a multiple choice that it names |
| `short_answers.py` | short answers and their metrics |
| `mathematics.py` | MathVista and MATH-Vision by rules |
| `judge.py` | a language model that finds the answer in a reply |
| `box_forms.py`, `boxes.py` | boxes as models write them, and their overlap with the data's box |

Nothing that a model wrote is ever run as code. This room may import `errors`, and `omni` to read frames of videos; not
`evaluation.model`, which imports this room, nor `evaluation.report`, nor any room of merging.
"""
