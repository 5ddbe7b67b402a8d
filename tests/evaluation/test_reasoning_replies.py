"""Models that think before they answer: their thoughts are not scored, and the results say so."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import eval_mirror
import pytest
from eval_mirror import TASKS, Answering, right
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from mllm_runs import model, png, said, saved

from mergekit_mm.evaluation.tasks import scoring


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mirror")
    eval_mirror.write(root)
    return root


@pytest.fixture(autouse=True)
def local_data(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLM_EVAL_DATA", str(mirror))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", mirror / "cache")


def run(name: str, lm: Any) -> dict[str, Any]:
    ours = TaskManager(include_path=str(TASKS), include_defaults=False)
    return simple_evaluate(lm, tasks=[name], task_manager=ours)["results"][name]


VISUAL = ["mllm_vizwiz_val", "mllm_gqa_testdev", "mllm_mathvista_geometry", "mllm_mathvision_mini", "mllm_chartqa"]
OTHERS = ["mllm_ocrvqa_testcore", "mllm_refcoco_val", "mllm_avqa_video", "mllm_music_avqa_video"]


@pytest.mark.parametrize("name", [*VISUAL, *OTHERS])
def test_thoughts_are_taken_off_and_counted(name: str) -> None:
    results = run(name, Answering(lambda doc: f"<think>Is it [0, 0, 1, 1], A, 3 or no?</think>\n\n{right(doc)}"))
    assert results["score,none"] == 1
    assert results["thoughts,none"] == results["sample_len"]


def test_only_some_replies_have_thoughts() -> None:
    """No line of the results without any; thoughts without an end have no answer behind them."""
    assert "thoughts,none" not in run("mllm_gqa_testdev", Answering(right))
    results = run("mllm_gqa_testdev", Answering(lambda doc: ("<think>" if doc["answer"] == "red" else "") + right(doc)))
    assert results["thoughts,none"] == 1
    assert results["score,none"] == pytest.approx(2 / 3)


@pytest.mark.slow
def test_the_end_of_thoughts_may_be_a_token_or_a_text() -> None:
    """As `hf` has it: what follows the last such token, without the blanks in front."""
    doc, tokens = {"prompt": "<image>what?", "image": png(1)}, []
    lm = model(saved("llava"))
    generate = lm.model.generate

    def kept(**inputs: Any) -> Any:
        made = generate(**inputs)
        tokens.extend(made[0, inputs["input_ids"].shape[1] :].tolist())
        return made

    lm.model.generate = kept
    (plain,) = said(lm, [doc])
    end = tokens[len(tokens) // 2]
    last = max(at for at, token in enumerate(tokens) if token == end)
    expected = lm.tokenizer.decode(tokens[last + 1 :], skip_special_tokens=True).lstrip()
    assert expected != plain
    for given in (end, str(end)):  # the command line gives a text
        assert said(model(saved("llava"), think_end_token=given), [doc]) == [expected]
    assert said(model(saved("llava"), think_end_token="</no such text>"), [doc]) == [plain]
    assert said(model(saved("llava"), think_end_token=plain[:2]), [doc]) == [plain.split(plain[:2])[-1].lstrip()]


# -------------------------------------------------------------------------------------------------------------- a judge


class Judge(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that answers what the server's `answer` is."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body["messages"][0]["content"].partition("Reply:\n")[2])
        self.send_response(200)
        self.end_headers()
        found = {"choices": [{"message": {"content": self.server.answer}}]}
        self.wfile.write(json.dumps(found).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def judge() -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Judge) as server:
        server.asked, server.answer = [], "45"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def mathvista(server: Any, **fields: Any) -> dict[str, Any]:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    doc = {"choices": [], "question_type": "free_form", "answer_type": "integer", "answer_option": None}
    doc |= {"precision": None, "answer": "45", "prompt": "?", "judge": {"url": url, "model": "x"}}
    return {**doc, **fields}


@pytest.mark.parametrize(
    ("reply", "asked"),
    [
        ("45", []),
        ("**46**", []),
        ("", []),
        ("The answer is 45.", ["The answer is 45."]),
        ("46 degrees, since the sum is 180", ["46 degrees, since the sum is 180"]),
        ("<think>46</think>It is 45", ["It is 45"]),
        ("<think>46</think>45", []),
        ("no idea", ["no idea"]),
    ],
)
def test_a_judge_is_asked_about_every_reply_that_is_more_than_the_answer(
    reply: str, asked: list[str], judge: Any
) -> None:
    score = scoring.mathvista(mathvista(judge), [reply])["score"]
    assert judge.asked == asked
    assert score == (1 if asked or "45" in reply else 0)


def test_what_the_judge_finds_counts(judge: Any) -> None:
    assert scoring.mathvista(mathvista(judge, answer="46"), ["The answer is 46"])["score"] == 0  # it says 45
    judge.answer = "none"
    assert scoring.mathvista(mathvista(judge), ["The answer is 45"])["score"] == 0
    judge.answer = "B"
    choice = mathvista(judge, choices=["44", "45"], question_type="multi_choice", answer_option="B")
    assert scoring.mathvista(choice, ["the second one"]) == {"score": 1, "strict": 0, "parsed": 0}
    assert scoring.mathvision({**choice, "answer": "B"}, ["the second one"]) == {"score": 1, "parsed": 0}
    count = len(judge.asked)
    assert (
        scoring.mathvista(choice, ["(B)"])["score"]
        == scoring.mathvision({**choice, "answer": "A"}, ["A"])["score"]
        == 1
    )
    assert len(judge.asked) == count


def test_the_rules_read_where_the_judge_says_nothing(judge: Any) -> None:
    judge.answer = ""
    assert scoring.mathvista(mathvista(judge), ["The answer is 45."])["score"] == 1
