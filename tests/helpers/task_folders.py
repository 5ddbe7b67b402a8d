"""A folder of tasks of lm-eval on small random pictures, with labels that mean nothing, for any model that sees."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import end_to_end as c
import yaml

_DOCUMENTS = '''
import io, random
import datasets
from PIL import Image

def png(seed):
    data = io.BytesIO()
    Image.frombytes("RGB", (28, 28), random.Random(seed).randbytes(28 * 28 * 3)).save(data, "PNG")
    return {"bytes": data.getvalue(), "path": None}

def load(kind, count, broken=(), missing_package=None, **_):
    """broken: the numbers of questions whose picture cannot be read. missing_package: told as one that is missing."""
    if missing_package:
        raise ImportError(missing_package)
    draw = random.Random(kind)
    words = ["what", "is", "it", "here", "one", "two"]
    rows = [
        {"prompt": "<image>" + " ".join(draw.choices(words, k=4)), "image": png(at), "answer": draw.randrange(3)}
        for at in range(count)
    ]
    for at in broken:
        rows[at]["image"] = {"bytes": b"no picture", "path": None}
    return {"validation": datasets.Dataset.from_list(rows)}
'''
_CHOICE: dict[str, Any] = {
    "validation_split": "validation",
    "output_type": "multiple_choice",
    "doc_to_text": "prompt",
    "doc_to_choice": ["a", "b", "no b"],
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "fewshot_config": {"samples": []},
}
_MEDIAN = {"metric_list": [{"metric": "acc", "aggregation": "median", "higher_is_better": True}]}
_SAID = {
    "output_type": "generate_until",
    "doc_to_choice": None,
    "doc_to_target": "a",
    "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 2},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": False}],
}
_TAGS = "custom_dataset: !function documents.load\ndoc_to_image: !function mergekit_mm.evaluation.tasks.media.images\n"


@functools.cache
def folder() -> Path:
    """Choices among three: `mine_one` and `mine_two`, of 40 and 12 questions, together the group `mine`; `mine_median`,
    which has no mean; `mine_said`, whose replies are cut, and of whose metric less is better."""
    made = c.fresh("tasks")
    made.mkdir()
    (made / "documents.py").write_text(_DOCUMENTS)
    tasks = {"one": (40, {}), "two": (12, {}), "median": (12, _MEDIAN), "said": (6, _SAID)}
    for name, (count, more) in tasks.items():
        config = {"task": f"mine_{name}", "dataset_kwargs": {"kind": name, "count": count}, **_CHOICE, **more}
        config = {key: value for key, value in config.items() if value is not None}
        (made / f"{name}.yaml").write_text(_TAGS + yaml.safe_dump(config))
    (made / "group.yaml").write_text(yaml.safe_dump({"group": "mine", "task": ["mine_one", "mine_two"]}))
    return made
