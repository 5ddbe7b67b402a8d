"""`mergekit-mm report --html`: what the page holds, where its pictures come from, and input that is amiss."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import answered
import mllm_runs
import pytest
from answered import PICTURES, ROLES, SOUNDS
from click.testing import CliRunner, Result
from eval_mirror import TASKS
from lm_eval.tasks import TaskManager

from mergekit_mm.cli import main

EMBEDDED = re.compile(r"data:(image/webp|audio/(mpeg|wav));base64,[A-Za-z0-9+/=]+")


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLM_EVAL_DATA", str(answered.data()))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(answered.results(), tmp_path / "results"))


def report(*arguments: object, include: Path = TASKS) -> Result:
    """include: without it lm-eval looks through its own 14 000 files for the tasks."""
    return CliRunner().invoke(main, ["report", *map(str, arguments), "--include-path", str(include)])


class Page:
    """The page that a report wrote."""

    def __init__(self, *arguments: object) -> None:
        target = Path(str(arguments[0])).parent / "page.html"
        result = report(*arguments, "--html", target)
        assert result.exit_code == 0, result.output
        self.text = target.read_text(encoding="utf-8")
        self.size = target.stat().st_size
        found = re.search(r'<script type="application/json" id="answers-data">(.*?)</script>', self.text)
        self.data: dict[str, Any] = json.loads(found[1]) if found else {}

    def notes(self) -> list[str]:
        """The notes of the section with the answers."""
        section = self.text[self.text.index('<section id="answers"') :]
        listed = re.search(r"<ul>(.*?)</ul>", section[: section.index("</section>")], re.DOTALL)
        return [unescape(each) for each in re.findall(r"<li>(.*?)</li>", listed[1])] if listed else []

    def questions(self, task: str) -> list[dict[str, Any]]:
        """The questions of a task with texts and media in the place of their numbers."""
        texts, media, names = (self.data[key] for key in ("texts", "media", "tasks"))
        return [
            {
                "document": document,
                "text": texts[text],
                "reference": texts[reference],
                "answers": [each and (texts[each[0]], texts[each[1]], each[2]) for each in answers],
                "media": [media[each] for each in shown],
            }
            for at, document, text, reference, answers, shown in self.data["questions"]
            if names[at]["name"] == task
        ]


def test_the_answers_of_all_models_stand_side_by_side(results: Path) -> None:
    page = Page(results, *ROLES)
    assert [each["name"] for each in page.data["models"]] == ["base", "expert", "merge_a", "merge_b"]
    assert page.data["merge"] == 2  # the better one
    first, second, third = page.questions("GQA")
    assert first["text"] == "Is it blue?\nAnswer the question using a single word or phrase."
    assert first["reference"] == "yes"
    assert first["answers"] == [("17", "", 0.0), ("yes", "", 1.0), ("yes", "", 1.0), ("", "", 0.0)]
    assert [each[2] for each in third["answers"]] == [1.0, 1.0, 0.0, 0.0]
    assert second["answers"][2][0].startswith("</script><script>window.harmed")
    assert "⟨U+202E⟩turned⟨U+202C⟩ ⟨U+0007⟩" in second["answers"][2][0]


def test_the_page_has_the_numbers_of_the_table(results: Path) -> None:
    page = Page(results, *ROLES)
    listed = report(results, *ROLES, "--format", "csv").stdout.splitlines()
    numbers = [f"{float(line.split(',')[3]):.1f}" for line in listed[1:]]
    assert all(re.search(rf'data-order="{number}\d*">(<strong>)?{number} ±', page.text) for number in numbers)
    for section in ("overview", "scores", "gains", "answers", "notes"):
        assert f'<section id="{section}"' in page.text
    assert 'id="gains-base"' in page.text
    assert 'id="gains-expert"' in page.text
    assert 'id="strength-lines"' not in page.text


def test_pictures_frames_and_sounds_are_found_by_task_and_number(results: Path) -> None:
    page = Page(results, *ROLES)
    assert page.notes() == []
    assert [[each["kind"] for each in one["media"]] for one in page.questions("GQA")] == [["image"]] * 3
    assert [each["text"] for each in page.questions("MUSIC-AVQA")] == ["How many?", "Which?"]
    for question in page.questions("MUSIC-AVQA"):
        video, sound = question["media"]
        assert (video["kind"], len(video["parts"]), video["note"]) == ("video", 4, "4 of its frames")
        assert (sound["kind"], len(sound["parts"])) == ("audio", 1)
    assert all(EMBEDDED.fullmatch(part) for each in page.data["media"] for part in each["parts"])


def test_media_have_a_limit_and_those_on_which_models_differ_come_first(results: Path) -> None:
    for name in ("base", "merge_a", "merge_b"):
        path = answered.samples(results / f"org__{name}")
        answered.rewrite(path, lambda line: {**line, "score": float(line["doc_id"] != 1)})
    page = Page(results, *ROLES, "--tasks", "GQA", "--media-mb", 0.0004)
    assert 200 < len(page.data["media"][0]["parts"][0]) < 400
    assert [len(each["media"]) for each in page.questions("GQA")] == [0, 1, 0]
    assert page.notes() == [
        "Media of 1 of 3 questions are in the page, those on which models differ first (--media-mb 0.0004)."
    ]
    page = Page(results, *ROLES, "--media-mb", 0)
    assert page.data["media"] == []
    assert page.notes() == []


def test_without_samples_the_page_shows_scores_and_says_so(results: Path) -> None:
    for path in results.rglob("samples_*"):
        path.unlink()
    page = Page(results, *ROLES)
    assert page.data == {}
    assert page.notes() == [
        "No answers are shown, as no sample files lie beside the results: --log_samples writes them."
    ]


def test_models_without_samples_are_named(results: Path) -> None:
    for path in (results / "org__merge_b").glob("samples_*"):
        path.unlink()
    answered.samples(results / "org__base", SOUNDS).unlink()
    page = Page(results, *ROLES)
    assert page.notes() == [
        "No answers by merge_b: no sample files lie beside the results (--log_samples).",
        "No answers of MUSIC-AVQA by base: no sample files lie beside the results (--log_samples).",
    ]
    assert [each["answers"][3] for each in page.questions("GQA")] == [None] * 3


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"doc_id": 0, "resps"', "no JSON"),
        ('{"question": "?"}', "no sample of lm-eval, which has `doc_id` and `resps`"),
        ("[]", "no sample of lm-eval"),
    ],
)
def test_a_damaged_sample_is_one_line_and_no_page(results: Path, line: str, told: str) -> None:
    path = answered.samples(results / "org__base")
    with path.open("a") as file:
        file.write(line + "\n")
    result = report(results, *ROLES, "--html", results / "page.html")
    assert result.exit_code == 1
    (message,) = [each for each in result.stderr.splitlines() if each.startswith("Error")]
    assert f"{path}, line 4: {told}" in message
    assert not (results / "page.html").exists()


def test_an_empty_folder_is_one_line_and_no_page(tmp_path: Path) -> None:
    result = report(tmp_path, "--html", tmp_path / "page.html")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_documents_that_are_not_logged_are_told(results: Path) -> None:
    for path in results.rglob(f"samples_{PICTURES}_*"):
        answered.rewrite(path, lambda line: {key: line[key] for key in line if key != "doc"})
    page = Page(results, *ROLES)
    assert page.notes() == ["GQA: samples without documents; the question is the prompt as it was sent."]
    assert page.questions("GQA")[0]["text"].startswith("<image>Is it blue?")


def test_documents_that_are_others_here_have_no_pictures(results: Path) -> None:
    for path in results.rglob(f"samples_{PICTURES}_*"):
        answered.rewrite(path, lambda line: {**line, "doc": {**line["doc"], "imageId": "another"}})
    page = Page(results, *ROLES)
    assert page.notes() == [
        "GQA: 3 documents are not those that the data have here, so that they are shown without media. Give "
        "--metadata and --include-path as for lm_eval."
    ]
    assert all(each["media"] == [] for each in page.questions("GQA"))


def test_models_that_were_asked_other_documents_are_not_taken_together(results: Path) -> None:
    answered.rewrite(answered.samples(results / "org__base"), lambda line: {**line, "target": "another"})
    page = Page(results, *ROLES)
    asked = page.questions("GQA")
    assert len(asked) == 6
    assert sorted(sum(each is not None for each in one["answers"]) for one in asked) == [1, 1, 1, 3, 3, 3]


@pytest.mark.slow
def test_a_task_that_is_not_found_is_told(results: Path) -> None:
    for path in results.rglob("*.json*"):
        text = path.read_text(encoding="utf-8").replace(PICTURES, "a_task_of_mine")
        path.unlink()
        path.with_name(path.name.replace(PICTURES, "a_task_of_mine")).write_text(text, encoding="utf-8")
    (note,) = Page(results, *ROLES).notes()
    assert note.startswith("No media of GQA: No task of lm-eval is called 'a_task_of_mine'.")
    assert note.endswith("Tasks of your own need --include-path, as for lm_eval.")


def test_media_that_cannot_be_read_are_told(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Path(shutil.copytree(answered.data(), tmp_path / "broken"))
    for path in broken.rglob("MUSIC-AVQA/video/*.gif"):
        path.write_bytes(b"no video")
    monkeypatch.setenv("MLLM_EVAL_DATA", str(broken))
    page = Page(results, *ROLES)
    (note,) = page.notes()
    assert note.startswith("2 media are not shown, for instance MUSIC-AVQA, document 0: video cannot be read: ")
    assert [each["kind"] for each in page.questions("MUSIC-AVQA")[0]["media"] if each["parts"]] == ["audio"]


def test_merges_at_several_strengths_are_curves(results: Path) -> None:
    for name in ("merge_a", "merge_b"):
        folder = results / f"org__{name}"
        for path in folder.glob("results_*.json"):
            strength = {"merge_a": "0.5", "merge_b": "1.5"}[name]
            path.write_text(path.read_text().replace(f"org/{name}", f"out/my_sweep/scaling_{strength}"))
    text = Page(results, *ROLES).text
    chart = text[text.index('<figure id="strength-lines"') :]
    titles = re.findall(r"<title>(.*?)</title>", chart[: chart.index("</figure>")])
    assert "my_sweep, GQA, strength 0.5: 33.3 (−32.0 to 98.7)" in titles
    assert "best expert, GQA: 100.0" in titles


def test_ten_thousand_questions_are_a_few_megabytes(results: Path) -> None:
    for folder in results.iterdir():
        answered.multiplied(folder, 10_000)
    page = Page(results, *ROLES, "--tasks", "GQA", "--media-mb", 0)
    assert len(page.questions("GQA")) == 10_000
    assert page.size < 4e6


def test_long_texts_lose_their_middle_where_all_are_too_long(results: Path) -> None:
    for folder in results.iterdir():
        answered.multiplied(folder, 2000, f"{folder.name} {answered.LONG * 2} so the answer is")
    page = Page(results, *ROLES, "--tasks", "GQA", "--media-mb", 0)
    assert page.size < 8e6
    (note,) = page.notes()
    assert note.endswith(" characters are shown without their middle, to keep the page small.")
    text = page.questions("GQA")[0]["answers"][0][0]
    assert re.search(r" \[… \d+ characters …\] .* so the answer is 0 of org__base$", text, re.DOTALL)


def test_choices_are_shown_by_their_texts(tmp_path: Path) -> None:
    task = mllm_runs.task([{"prompt": "Which?"}, {"prompt": "And which now?"}], **mllm_runs.CHOICES)
    answered.save(_Likely(), "org/likely", [task], TaskManager(include_defaults=False), tmp_path / "results")
    first, _ = Page(tmp_path / "results").questions("mine (acc)")
    assert first["reference"] == "a"
    assert first["answers"] == [("no b", "", 0.0)]


class _Likely(answered.Answering):
    """A model to which longer choices are likelier."""

    def __init__(self) -> None:
        super().__init__(str)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(float(len(request.args[1])), False) for request in requests]


@pytest.mark.slow
def test_mllm_writes_thumbnails_from_which_pictures_are_found(tmp_path: Path) -> None:
    docs = [
        {"prompt": "<image>one", "image": mllm_runs.png(0)},
        {"prompt": "<video>two", "video": mllm_runs.film(1)},
        {"prompt": "<audio>three", "audio": mllm_runs.wav(2)},
        {"prompt": "four"},
    ]
    out = tmp_path / "results"
    lm = mllm_runs.model(mllm_runs.omni(), thumbnails=str(out / "small"))
    for name in ("org/one", "org/two"):  # the second run finds them there
        answered.save(lm, name, [mllm_runs.task(docs)], TaskManager(include_defaults=False), out)
    lines = (out / "small/thumbnails_mine.jsonl").read_text().splitlines()
    assert len(lines) == 3
    page = Page(out)
    found = [[(each["kind"], len(each["parts"])) for each in one["media"]] for one in page.questions("mine")]
    assert found == [[("image", 1)], [("video", 4)], [("audio", 1)], []]
    (out / "small/thumbnails_mine.jsonl").write_text(
        '{"doc_hash": "a", "media": [{"kind": "image", "parts": ["x"]}]}\n'
    )
    result = report(out, "--html", out / "page.html")
    assert result.exit_code == 1
    assert "thumbnails_mine.jsonl, line 1: no thumbnails as `mllm` writes them" in result.stderr
