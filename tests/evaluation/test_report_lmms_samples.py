"""`mergekit-mm report --html` on the sample files of lmms-eval, in a real browser.

The files are written here by hand, with the keys and the names that lmms-eval's `EvaluationTracker` gives them in 0.3
and in 0.7, and the values that its tasks chartqa, pope and gsm8k return for a document.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Opened, opened
from click.testing import CliRunner, Result

from mergekit_mm.cli import main

DATE = "20260314_120000"
PROMPT = "What is the value of the red bar?\nAnswer the question with a single word."
THOUGHT = "<think>The bar ends at 12.</think>12"


def chartqa(reply: str, score: float, **more: Any) -> dict[str, Any]:
    """A line of 0.7, in which a reply that no filter changed stands once."""
    return {
        "doc_id": 3,
        "target": "12",
        "filtered_resps": reply,
        "token_counts": [{"output_tokens": 4}],
        "doc_hash": "5d0f",
        "relaxed_overall": score,
        "relaxed_human_split": score,
        "input": PROMPT,
        **more,
    }


def chartqa_of_0_3(reply: str, score: float) -> dict[str, Any]:
    """The same document in 0.3, with its texts, and with lists round its replies."""
    return {
        "doc_id": 3,
        "doc": {"type": "human_test", "question": "What is the value of the red bar?", "answer": "12"},
        "target": "12",
        "arguments": {"0": "max_new_tokens", "1": "temperature"},
        "resps": [[reply]],
        "filtered_resps": [reply],
        "doc_hash": "77aa",
        "relaxed_overall": score,
        "relaxed_human_split": score,
        "input": PROMPT,
    }


def pope(reply: str, score: float) -> dict[str, Any]:
    """A task whose metrics are mappings, of which the aggregation makes a number."""
    told = {"question_id": "1", "score": score, "prediction": reply, "ground_truth": "yes"}
    return {
        "doc_id": 0,
        "target": "yes",
        "filtered_resps": reply,
        "doc_hash": "c1",
        "pope_accuracy": told,
        "pope_f1_score": told,
        "input": "Is there a dog?",
    }


def gsm8k(doc_id: int, reply: str, read: str, score: float) -> dict[str, Any]:
    return {
        "doc_id": doc_id,
        "target": "18",
        "resps": [reply],
        "filtered_resps": read,
        "doc_hash": f"g{doc_id}",
        "exact_match": score,
        "input": "How many eggs?",
    }


def write(folder: Path, name: str, results: dict[str, Any], samples: dict[str, list[dict[str, Any]]]) -> Path:
    """The result and sample files of a model; returns its folder."""
    into = folder / name.replace("/", "__")
    into.mkdir(parents=True)
    filters = [{"name": "strict-match", "filter": []}, {"name": "flexible-extract", "filter": []}]
    configs = {task: {"task": task, **({"filter_list": filters} if task == "gsm8k" else {})} for task in results}
    top = {
        "results": results,
        "configs": configs,
        "versions": dict.fromkeys(results, 0.0),
        "n-shot": dict.fromkeys(results, 0),
        "config": {"model": "qwen2_vl", "model_args": f"pretrained={name}", "batch_size": "1"},
        "date": DATE,
        "model_name": name,
    }
    (into / f"{DATE}_results.json").write_text(json.dumps(top))
    for task, lines in samples.items():
        (into / f"{DATE}_samples_{task}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return into


def report(results: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["report", str(results), *arguments, "--html", str(results / "page.html")])


def page(results: Path, *arguments: str) -> Path:
    result = report(results, *arguments)
    assert result.exit_code == 0, result.output
    return results / "page.html"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """An expert evaluated by 0.3 and a merge by 0.7."""
    chart, dog = {"relaxed_overall,none": 1.0}, {"pope_accuracy,none": 1.0}
    lines = {"chartqa": [chartqa_of_0_3("12", 1.0)], "pope": [pope("yes", 1.0)]}
    write(tmp_path, "org/expert", {"chartqa": chart, "pope": dog}, lines)
    lines = {"chartqa": [chartqa("13", 0.0)], "pope": [pope("no", 0.0)]}
    write(tmp_path, "org/merge", {"chartqa": {"relaxed_overall,none": 0.0}, "pope": {"pope_accuracy,none": 0.0}}, lines)
    return tmp_path


def articles(shown: Opened) -> Iterator[tuple[str, str, str, list[list[str]]]]:
    """Heading, question, reference and the cells of the table of each question that is shown."""
    for each in shown.tab.locator("#answers-list article").all():
        rows = [row.locator("th, td").all_inner_texts() for row in each.locator("tbody tr").all()]
        texts = [each.locator(part).inner_text() for part in ("h3", ".question", ".reference")]
        yield texts[0], texts[1], texts[2], rows


def test_answers_of_old_and_new_files_stand_side_by_side(browser: Any, results: Path) -> None:
    with opened(browser, page(results, "--expert", "org/expert")) as shown:
        assert shown.said == []
        chart, dog = articles(shown)
        assert chart == (
            "chartqa (relaxed_overall), document 3",
            "What is the value of the red bar?",
            "Reference: 12",
            [["expert expert", "✓ right", "12"], ["merge merge", "✗ wrong", "13"]],
        )
        assert dog == (
            "pope (pope_accuracy), document 0",
            "Is there a dog?",
            "Reference: yes",
            [["expert expert", "✓ right", "yes"], ["merge merge", "✗ wrong", "no"]],
        )
        shown.tab.locator("[data-filter=lost]").click()
        assert len(list(articles(shown))) == 2
        assert shown.tab.locator("header p").first.inner_text().startswith("Results of lmms-eval: 1 expert, 1 merge.")
        assert shown.texts("#answers > ul li") == [
            "chartqa (relaxed_overall), pope (pope_accuracy): samples without documents; the question is the prompt as "
            "it was sent.",
            "chartqa (relaxed_overall), pope (pope_accuracy): samples of lmms-eval, whose pictures and sounds are not "
            "looked for.",
        ]


def test_what_was_made_of_a_reply_is_told(browser: Any, tmp_path: Path) -> None:
    lines = {"chartqa": [chartqa("12", 1.0, resps=[THOUGHT])]}
    write(tmp_path, "org/thinking", {"chartqa": {"relaxed_overall,none": 1.0}}, lines)
    with opened(browser, page(tmp_path)) as shown:
        ((_, question, _, rows),) = articles(shown)
        assert question == PROMPT
        assert rows == [["thinking", "✓ right", f"{THOUGHT}\n\nread as: 12"]]


def test_lines_of_several_filters_are_told_apart_by_their_order(browser: Any, tmp_path: Path) -> None:
    scores = {"exact_match,strict-match": 0.0, "exact_match,flexible-extract": 0.5}
    strict = [gsm8k(0, "It is 18.", "[invalid]", 0.0), gsm8k(1, "17!", "[invalid]", 0.0)]
    flexible = [gsm8k(0, "It is 18.", "18", 1.0), gsm8k(1, "17!", "17", 0.0)]
    write(tmp_path, "org/one", {"gsm8k": scores}, {"gsm8k": strict + flexible})
    for metric, marks in {"strict-match": ["✗ wrong"] * 2, "flexible-extract": ["✓ right", "✗ wrong"]}.items():
        with opened(browser, page(tmp_path, "--metric", f"exact_match,{metric}")) as shown:
            assert [rows[0][1] for *_, rows in articles(shown)] == marks


def test_samples_are_found_where_the_results_were_renamed(browser: Any, results: Path) -> None:
    for folder in ("org__expert", "org__merge"):
        (results / folder / f"{DATE}_results.json").rename(results / folder / "my_results.json")
    with opened(browser, page(results)) as shown:
        assert len(list(articles(shown))) == 2


def test_a_damaged_line_is_one_message(results: Path) -> None:
    path = results / "org__merge" / f"{DATE}_samples_pope.jsonl"
    with path.open("a") as file:
        file.write('{"doc_id": 1, "input": "?"}\n')
    result = report(results)
    assert result.exit_code == 1
    assert f"{path}, line 2: no sample of lmms-eval, which has `doc_id` and `filtered_resps`" in result.stderr
