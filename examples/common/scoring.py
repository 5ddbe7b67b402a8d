"""The metric of the examples' tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

from mergekit_mm.evaluation.tasks.replies import answer_part


def begins(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """`process_results`: a reply is right if it begins with the words of the answer."""
    words = doc["answer"].split()
    return {"score": float(answer_part(results[0]).split()[: len(words)] == words)}
