"""Pages as files: escaping, the security policy, charts, and that a page is written whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from mergekit_mm.errors import MergeError
from mergekit_mm.pages import (
    Cell,
    Column,
    Dot,
    DotPanel,
    DotRow,
    Line,
    LinePanel,
    Page,
    Point,
    Section,
    dots,
    heat_map,
    json_block,
    lines,
    table,
    tag,
    write_page,
)
from mergekit_mm.pages.markup import visible
from mergekit_mm.pages.scales import LEVELS, Scale, as_text, levels

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\" onload='x' &amp; \u202eabc\x00\u2028"
NUMBERS = st.floats(-1e6, 1e6)


class _Read(HTMLParser):
    """The tags of a document, and the texts of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, dict[str, str | None], str]] = []
        self.text = ""
        self._open: tuple[str, dict[str, str | None]] | None = None
        self.feed(text)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        if name != "wbr":  # after each separator of a name
            self.tags.append((name, dict(attributes)))
        self._open = (name, dict(attributes)) if name in ("script", "style") else None

    def handle_endtag(self, name: str) -> None:
        self._open = None

    def handle_data(self, data: str) -> None:
        if self._open:
            self.raw.append((*self._open, data))
        else:
            self.text += data


def page(text: str = "plain") -> Page:
    """A page with one of everything, in which `text` stands wherever a text can stand."""
    charts = [
        dots("dots", text, [DotRow(text)], [DotPanel(text, [Dot(1.0, 0.5, 1.5)])], [(1, text)]),
        lines("lines", text, text, [LinePanel(text, [Line(text, [Point(0.5, 1.0), Point(1.0, 2.0)])], [(text, 1.5)])]),
        heat_map("map", text, [text], [text, "b"], [[1.0, None]], notes=[[text, ""]]),
        table("table", text, [Column(text), Column(text, True, text)], [[text, Cell(text, 1.0, True, text)]], [text]),
        tag("p", text, title=text),
    ]
    return Page(
        text, [Section("one", text, [text, *charts])], [text], [json_block("data", {text: [text]})], script="0;"
    )


def test_texts_are_text_wherever_they_stand() -> None:
    plain, hostile = _Read(page().html()), _Read(page(HOSTILE).html())
    assert [name for name, _ in hostile.tags] == [name for name, _ in plain.tags]
    known = {key for _, attributes in plain.tags for key in attributes}
    assert {key for _, attributes in hostile.tags for key in attributes} - known <= {"transform"}  # of long names
    assert "<img src=x onerror=alert(2)>" in hostile.text


def test_no_character_is_unseen_or_turns_text_around() -> None:
    text = page("a\u202eb\x07c\ud800d").html()
    assert "a⟨U+202E⟩b⟨U+0007⟩c⟨U+D800⟩d" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\ud800-\udfff]", text)


@given(st.text())
def test_data_comes_back(text: str) -> None:
    (raw,) = _Read(str(json_block("data", {"a": [text, 1.5, None]}))).raw
    assert json.loads(raw[2]) == {"a": [visible(text), 1.5, None]}


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_has_not_are_refused(number: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        json_block("data", [number])


def test_the_policy_allows_the_scripts_and_styles_of_the_page_and_no_request() -> None:
    read = _Read(page().html())
    policy = next(a["content"] for name, a in read.tags if name == "meta" and "http-equiv" in a)
    assert policy is not None
    running = [text for name, attributes, text in read.raw if "type" not in attributes]
    hashes = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in running}
    assert len(hashes) == 3  # the style sheet and the script of every page, and the page's own script
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == hashes
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert "unsafe" not in policy


def test_a_page_names_nothing_that_it_would_have_to_fetch() -> None:
    for name, attributes in _Read(page().html()).tags:
        for key in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attributes.get(key) or "#").startswith(("#", "data:")), (name, attributes)


def test_the_same_page_is_the_same_bytes(tmp_path: Path) -> None:
    sizes = [write_page(tmp_path / "new folder" / name, page()) for name in ("a.html", "b.html")]
    first, second = ((tmp_path / "new folder" / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second
    assert sizes == [len(first)] * 2


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "page.html"
    target.write_text("before")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mergekit_mm.pages.page.os.replace", full)
    with pytest.raises(MergeError, match="No space left"):
        write_page(target, page())
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]
    assert target.read_text() == "before"


def test_a_page_can_be_read_by_those_who_can_read_other_files(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch()
    write_page(tmp_path / "page.html", page())
    assert (tmp_path / "page.html").stat().st_mode == other.stat().st_mode


@given(NUMBERS, NUMBERS)
def test_ticks_are_a_few_round_numbers_within_the_values(one: float, other: float) -> None:
    low, high = sorted((one, other))
    if high - low < 1e-3:
        return
    ticks = Scale(low, high, 0, 100).ticks(5)
    assert 1 <= len(ticks) <= 6
    rounding = 1e-9 * (high - low) + 1e-6
    assert all(low - rounding <= each <= high + rounding for each in ticks)
    assert ticks == sorted(set(ticks))
    assert all(float(each).is_integer() for each in Scale(low, high, 0, 100).ticks(5, whole=True))


@given(st.lists(st.lists(st.one_of(NUMBERS, st.none(), st.just(float("nan"))), min_size=2, max_size=2), min_size=1))
def test_levels_of_colour_follow_the_values(values: list[list[float | None]]) -> None:
    for centre in (None, 0.0):
        found = [pair for row in zip(values, levels(values, centre), strict=True) for pair in zip(*row, strict=True)]
        told = sorted((value, level) for value, level in found if value is not None and value == value)
        assert all(level is None for value, level in found if value is None or value != value)
        assert [level for _, level in told] == sorted(level for _, level in told)
        assert all(0 <= level < LEVELS for _, level in told)
        if centre is not None:
            assert all(
                (level < LEVELS // 2) <= (value < 0) and (level > LEVELS // 2) <= (value > 0) for value, level in told
            )


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [(-0.04, "+.1f", "0.0"), (0.04, "+.1f", "0.0"), (-1.0, ".1f", "−1.0"), (-1e-5, ".3g", "−1e−05")],
)
def test_numbers_as_text(value: float, form: str, text: str) -> None:
    assert as_text(value, form) == text


def test_every_value_of_a_chart_is_in_its_table_and_in_its_marks() -> None:
    chart = heat_map("map", "Drift", ["q", "k"], ["0", "1"], [[0.125, None], [-2.0, 3.0]], centre=0.0, form=".3f")
    marks = re.findall(r"<title>([^<]*)</title>", chart)
    assert marks == ["q, 0: 0.125", "k, 0: −2.000", "k, 1: 3.000"]
    assert [text for text in ("0.125", "−2.000", "3.000", "–") if f">{text}</td>" not in chart] == []


def test_markup_is_put_in_as_it_is() -> None:
    text = Page("t", [Section("s", "h", [tag("b", "bold"), "<b>not bold</b>"])]).html()
    assert "<b>bold</b>" in text
    assert "&lt;b&gt;not bold&lt;/b&gt;" in text
    assert isinstance(tag("p", ["a", Markup("<br>")]), Markup)
