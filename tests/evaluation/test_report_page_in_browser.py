"""The page of `mergekit-mm report --html` in a real browser: filters, search, hostile text, ten thousand questions."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import answered
import pytest
from answered import ROLES
from browser import PHONE, Opened, opened
from click.testing import CliRunner
from eval_mirror import TASKS

from mergekit_mm.cli import main

BY_FILTER = {  # of the five questions, for the merge `merge_a` compared with any of base and expert
    "all": [
        "GQA, document 0",
        "GQA, document 1",
        "GQA, document 2",
        "MUSIC-AVQA, document 0",
        "MUSIC-AVQA, document 1",
    ],
    "lost": ["GQA, document 1", "GQA, document 2", "MUSIC-AVQA, document 1"],
    "won": [],
    "wrong": [],
    "right": [],
    "differ": [
        "GQA, document 0",
        "GQA, document 1",
        "GQA, document 2",
        "MUSIC-AVQA, document 0",
        "MUSIC-AVQA, document 1",
    ],
}


def _page(results: Path, *arguments: str) -> Path:
    path = results / "page.html"
    told = [str(results), *ROLES, "--html", str(path), "--include-path", str(TASKS), *arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLLM_EVAL_DATA", str(answered.data()))
        result = CliRunner().invoke(main, ["report", *told])
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _page(Path(shutil.copytree(answered.results(), tmp_path_factory.mktemp("page") / "results")))


def headings(shown: Opened) -> list[str]:
    return shown.texts("#answers-list h3")


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}, PHONE], ids=["wide", "dark", "phone"])
def test_the_page_opens_and_can_be_read(browser: Any, page: Path, options: dict[str, Any]) -> None:
    with opened(browser, page, **options) as shown:
        assert len(headings(shown)) == 5
        assert (shown.said, shown.requests) == ([], [page.as_uri()])
        assert not shown.is_wider_than_its_window()
        for summary in shown.tab.locator("summary").all():
            summary.click()
        contrast, where = shown.lowest_contrast()
        assert contrast >= 4.5, where
        assert not shown.is_wider_than_its_window()
        assert shown.said == []


def test_answers_that_are_hostile_stay_text(browser: Any, page: Path) -> None:
    with opened(browser, page) as shown:
        answer = shown.tab.locator("#answers-list article").nth(1).locator("tbody tr").nth(2)
        text = answer.locator("details p.text").text_content()
        assert text.startswith("</script><script>window.harmed = true</script><img src=x onerror='window.harmed")
        assert "⟨U+202E⟩turned⟨U+202C⟩ ⟨U+0007⟩ ⚠ 文字" in text
        assert text.endswith("word by word, ")
        assert shown.tab.evaluate("window.harmed") is None
        assert shown.tab.locator("#answers-list :is(script, b, img:not([src^='data:image/webp;base64,']))").count() == 0
        assert len(answer.inner_text()) < 700  # a long answer is folded
        answer.locator("summary").press("Enter")
        assert len(answer.inner_text()) > 10_000


@pytest.mark.slow
def test_a_hostile_text_would_not_run_even_as_html(browser: Any, page: Path) -> None:
    """What stands between a text and the reader if escaping failed: the page's own security policy."""
    with opened(browser, page) as shown:
        shown.tab.evaluate(
            "document.body.insertAdjacentHTML('beforeend', `<img src='http://127.0.0.1:9/x.png'"
            " onerror='window.harmed = true'><a id='harm' href='javascript:window.harmed = true'>x</a>`)"
        )
        shown.tab.locator("#harm").evaluate("each => each.click()")
        shown.tab.wait_for_timeout(200)
        assert shown.tab.evaluate("window.harmed") is None
        assert [each for each in shown.said if "Content Security Policy" in each]


def test_filters_show_what_they_say(browser: Any, page: Path) -> None:
    with opened(browser, page) as shown:
        for key, expected in BY_FILTER.items():
            button = shown.tab.locator(f"[data-filter={key}]")
            assert button.inner_text().endswith(f"({len(expected)})")
            button.press("Enter")
            assert button.get_attribute("aria-pressed") == "true"
            assert headings(shown) == expected
            assert shown.tab.locator("[data-filter][aria-pressed=true]").count() == 1
        assert shown.texts("#answers-count") == ["5 of 5 questions shown"]


@pytest.mark.slow
def test_the_merge_what_it_is_compared_with_and_the_task_are_chosen(browser: Any, page: Path) -> None:
    with opened(browser, page) as shown:
        shown.tab.locator("[data-filter=won]").click()
        assert shown.texts("#answers-count") == ["No question is like this."]
        shown.tab.locator("#answers-other").select_option("base (base)")
        assert headings(shown) == ["GQA, document 0", "MUSIC-AVQA, document 0"]
        shown.tab.locator("#answers-task").select_option("GQA")
        assert headings(shown) == ["GQA, document 0"]
        assert shown.texts("#answers-list tr.looked-at th") == ["base base", "merge_a merge"]
        shown.tab.locator("#answers-merge").select_option("merge_b (merge)")
        assert headings(shown) == []
        options = shown.tab.locator("#answers-merge option").all_inner_texts()
        assert options == ["merge_a (merge)", "merge_b (merge)"]


@pytest.mark.slow
def test_words_are_searched_in_questions_references_and_answers(browser: Any, page: Path) -> None:
    with opened(browser, page) as shown:
        search = shown.tab.locator("#answers-search")
        for words, expected in {
            "is it BLUE": ["GQA, document 0"],
            "acoustic_guitar": ["MUSIC-AVQA, document 1"],
            "文字 colour": ["GQA, document 1"],
            "<script>": ["GQA, document 1", "GQA, document 2", "MUSIC-AVQA, document 1"],
            "nowhere": [],
        }.items():
            search.fill(words)
            shown.tab.wait_for_timeout(300)
            assert headings(shown) == expected


def test_right_and_wrong_are_told_in_words_and_media_are_shown(browser: Any, page: Path) -> None:
    with opened(browser, page) as shown:
        first = shown.tab.locator("#answers-list article").first
        assert first.locator("tbody td:nth-child(2)").all_inner_texts() == ["✗ wrong", "✓ right", "✓ right", "✗ wrong"]
        assert first.locator("img").evaluate("each => each.complete && each.naturalWidth") == 80
        assert first.locator("img").get_attribute("alt") == "picture of document 0"
        last = shown.tab.locator("#answers-list article").last
        assert last.locator("img.frame").count() == 4
        assert last.locator("audio").get_attribute("aria-label") == "sound of document 1"
        seconds = last.locator("audio").evaluate(
            "each => new Promise((done) => { each.onloadedmetadata = () => done(each.duration);"
            " each.onerror = () => done(-1); each.preload = 'metadata'; each.load(); })"
        )
        assert 0.05 < seconds < 0.5  # a tenth of a second, and what the encoding adds


@pytest.mark.slow
def test_ten_thousand_questions_are_laid_out_as_they_are_looked_at(browser: Any, tmp_path: Path) -> None:
    results = Path(shutil.copytree(answered.results(), tmp_path / "results"))
    for folder in results.iterdir():
        answered.multiplied(folder, 10_000)
    path = _page(results, "--tasks", "GQA", "--media-mb", "0")
    before = time.process_time()
    with opened(browser, path, viewport={"width": 1000, "height": 800}) as shown:
        assert shown.texts("#answers-count") == ["20 of 10000 questions shown"]
        more = shown.tab.locator("#answers-more")
        more.scroll_into_view_if_needed()
        shown.tab.locator("#answers-list article").nth(39).wait_for()
        count = shown.tab.locator("#answers-list article").count()
        more.press("Enter")
        assert shown.tab.locator("#answers-list article").count() >= count + 20
        shown.tab.locator("#answers-search").fill("question 9999 about")
        shown.tab.locator("#answers-list article").nth(1).wait_for(state="detached")
        assert headings(shown) == ["GQA, document 9999"]
    assert time.process_time() - before < 20
