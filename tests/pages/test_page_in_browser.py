"""Tables and charts of pages in a real browser: sorting, filtering, columns, pointer, keyboard, narrow and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browser import PHONE, Opened, opened

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
    lines,
    table,
    write_page,
)

NAMES = ["base", "a_long_name/of/an_expert_with_many_parts", "merge 10", "merge 9"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    columns = [Column("model"), Column("x", True, key="x"), Column("y", True, key="y")]
    rows = [
        [NAMES[0], Cell("2.0 ± 0.1", 2.0), None],
        [NAMES[1], 10.0, -1.5],
        [NAMES[2], -3.0, 0.5],
        [NAMES[3], 9.0, 0.25],
    ]
    keys = [f"row-{at}" for at in range(4)]
    marked = [DotRow(name, at % 3, key) for at, (name, key) in enumerate(zip(NAMES, keys, strict=True))]
    panels = [
        DotPanel("x", [Dot(2.0, 1.9, 2.1), Dot(10.0), Dot(-3.0), Dot(9.0)], 2.0, "x"),
        DotPanel("y", [None, Dot(-1.5), Dot(0.5), Dot(0.25)], None, "y"),
    ]
    curve = Line("sweep", [Point(0.5, 1.0, 0.5, 1.5), Point(1.0, 2.0, 1.5, 2.5)])
    curves = [LinePanel("mean", [curve], [("base", 1.2)])]
    letters, rising = list("abcdefghi"), [float(at) for at in range(9)]
    grid = [[float(r * c - 40) for c in range(60)] for r in range(3)]
    sections = [
        Section("table", "Table", [table("models", "Models", columns, rows, keys)]),
        Section("dots", "Dots", [dots("points", "Dots", marked, panels, [(0, "base")])]),
        Section("lines", "Lines", [lines("curves", "Lines", "strength", curves)]),
        Section("maps", "Maps", [
            heat_map("wide", "Wide", ["a", "b", "c"], list(map(str, range(60))), grid, centre=0.0),
            heat_map("all", "All levels", ["up"], letters, [rising], form=".0f"),
            heat_map("keyed", "Of two", ["base", "merge 9"], ["a", "b"], [[1, 2], [3, 4]], keys=[keys[0], keys[3]]),
            heat_map("signed", "Signed", ["up"], letters, [[at - 4 for at in rising]], centre=0.0, form=".0f"),
        ]),
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("pages") / "page.html"
    write_page(path, Page("A page", sections))
    return path


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}, PHONE], ids=["wide", "dark", "phone"])
def test_a_page_opens_without_a_complaint_or_a_request(browser: Any, page: Path, options: dict[str, Any]) -> None:
    with opened(browser, page, **options) as shown:
        assert shown.texts("h2") == ["Table", "Dots", "Lines", "Maps"]
        assert (shown.said, shown.requests) == ([], [page.as_uri()])
        assert not shown.is_wider_than_its_window()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(browser: Any, page: Path, scheme: str) -> None:
    with opened(browser, page, color_scheme=scheme) as shown:
        for summary in shown.tab.locator("summary").all():
            summary.click()
        contrast, where = shown.lowest_contrast()
        assert contrast >= 4.5, where
        ground = shown.tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]


def test_tables_are_sorted_by_numbers_and_by_names(browser: Any, page: Path) -> None:
    with opened(browser, page) as shown:
        by_x = shown.tab.locator("#models th[data-column=x] button")
        by_x.click()
        assert shown.texts("#models tbody th") == [NAMES[1], NAMES[3], NAMES[0], NAMES[2]]
        assert shown.tab.locator("#models th[data-column=x]").get_attribute("aria-sort") == "descending"
        by_x.click()
        assert shown.texts("#models tbody th") == [NAMES[2], NAMES[0], NAMES[3], NAMES[1]]
        shown.tab.locator("#models th[data-column=y] button").click()
        assert shown.texts("#models tbody th")[-1] == "base"  # which has no number there
        shown.tab.locator("#models thead th").first.locator("button").press("Enter")
        assert shown.texts("#models tbody th") == [NAMES[1], "base", "merge 9", "merge 10"]
        assert shown.tab.locator("#models [aria-sort]").count() == 1


def _drawn(shown: Opened, chart: str) -> list[str]:
    """The names of the rows of a drawing from top to bottom, as they are painted."""
    names = [each for each in shown.tab.locator(f"{chart} .rows > g > text").all() if each.is_visible()]
    return [each.text_content() for each in sorted(names, key=lambda each: each.bounding_box()["y"])]


def _told_by_keys(shown: Opened, chart: str) -> list[str]:
    """What the arrow keys tell of a drawing, from the first mark to the last."""
    shown.tab.locator(chart).focus()
    told: list[str] = []
    while not told or told[-1] != shown.texts("#tip"):
        told.append(shown.texts("#tip"))
        shown.tab.keyboard.press("ArrowRight")
    return [text for (text,) in told[1:]]


def test_charts_are_in_the_order_of_the_table(browser: Any, page: Path) -> None:
    with opened(browser, page) as shown:
        long = "a_long_name…many_parts"
        assert _drawn(shown, "#points [data-column=x]") == ["base", long, "merge 10", "merge 9"]
        assert shown.texts("#points .order") == []
        before = shown.tab.locator("#points svg[data-column=x]").bounding_box()
        shown.tab.locator("#models th[data-column=x] button").press("Enter")
        for panel in ("x", "y"):
            assert _drawn(shown, f"#points [data-column={panel}]") == [long, "merge 9", "base", "merge 10"]
        assert _drawn(shown, "#keyed") == ["merge 9", "base"]
        assert shown.tab.locator("#points svg[data-column=x]").bounding_box()["height"] == before["height"]
        shown.tab.locator("#points .values summary").click()
        assert shown.texts("#points tbody th") == [NAMES[1], NAMES[3], NAMES[0], NAMES[2]]
        assert shown.texts("#points .order") == ["As in the table: by x, descending."]


def test_keys_and_screen_readers_go_through_a_chart_in_the_order_of_the_table(browser: Any, page: Path) -> None:
    with opened(browser, page) as shown:
        shown.tab.locator("#models th[data-column=x] button").press("Enter")
        shown.tab.locator("#models .filter").fill("e")  # All names have an e.
        panel = "#points svg[data-column=x]"
        told = [f"{NAMES[1]}, x: 10.0", "merge 9, x: 9.0", "base, x: 2.0 (1.9 to 2.1)", "merge 10, x: −3.0"]
        assert _told_by_keys(shown, panel) == told
        shown.tab.locator("#models .filter").fill("merge")
        assert shown.texts("#tip") == []  # of a mark that may be gone
        assert _told_by_keys(shown, panel) == [told[1], told[3]]
        described = shown.tab.locator(panel).get_attribute("aria-describedby")
        assert shown.texts(f"#{described}") == ["As in the table: by x, descending; 2 of 4 shown."]
        shown.tab.locator("#keyed svg.chart").focus()
        for key, text in {"Home": "merge 9, a: 3", "ArrowRight": "merge 9, b: 4", "ArrowDown": "merge 9, b: 4"}.items():
            shown.tab.keyboard.press(key)
            assert shown.texts("#tip") == [text]


def test_a_filter_takes_rows_away_also_from_charts(browser: Any, page: Path) -> None:
    with opened(browser, page) as shown:
        shown.tab.locator("#models .filter").fill("MERGE 9.0")
        assert shown.texts("#models tbody th") == []
        shown.tab.locator("#models .filter").fill("MERGE 9")
        assert shown.texts("#models tbody th") == ["merge 9"]
        assert shown.texts("#models .count") == ["1 of 4 rows"]
        assert _drawn(shown, "#points [data-column=x]") == ["merge 9"]
        assert _drawn(shown, "#keyed") == ["merge 9"]
        assert shown.texts("#points .order") == ["As in the table: 1 of 4 shown."]
        axis = shown.tab.locator("#points [data-column=x] .foot text").first
        row = shown.tab.locator("#points [data-column=x] .rows > :not([hidden])")
        assert 0 < axis.bounding_box()["y"] - row.bounding_box()["y"] < 40  # right beneath the row that is left
        shown.tab.locator("#models .filter").fill("")
        assert len(_drawn(shown, "#points [data-column=x]")) == 4
        assert shown.texts("#points .order") == []
        assert shown.texts("#models tbody th") == NAMES


def test_columns_are_chosen_with_their_charts(browser: Any, page: Path) -> None:
    with opened(browser, page) as shown:
        shown.tab.locator("#models .chooser summary").click()
        shown.tab.locator("#models [data-shows=y]").uncheck()
        assert [each.split()[0] for each in shown.texts("#models thead th")] == ["model", "x"]
        assert shown.tab.locator("#points svg:visible").count() == shown.tab.locator("#points .legend svg").count() + 1
        shown.tab.locator("#points .values summary").click()
        assert shown.texts("#points thead th") == ["", "x"]
        shown.tab.locator("#models [data-shows=y]").check()
        assert len(shown.texts("#models thead th")) == 3


def test_marks_tell_their_values_to_a_pointer(browser: Any, page: Path) -> None:
    with opened(browser, page) as shown:
        shown.tab.locator("#points svg[data-column=x] .mark .shape").first.hover()
        assert shown.texts("#tip") == ["base, x: 2.0 (1.9 to 2.1)"]
        shown.tab.locator("h1").hover()
        assert shown.texts("#tip") == []


def test_marks_tell_their_values_to_the_keyboard(browser: Any, page: Path) -> None:
    with opened(browser, page, viewport={"width": 600, "height": 500}) as shown:
        shown.tab.locator("#points svg[data-column=x]").focus()
        shown.tab.keyboard.press("ArrowDown")
        shown.tab.keyboard.press("ArrowDown")
        assert shown.texts("#tip") == [f"{NAMES[1]}, x: 10.0"]
        assert shown.tab.locator("#points .mark.current").count() == 1
        shown.tab.keyboard.press("Escape")
        assert shown.texts("#tip") == []
        shown.tab.locator("#wide svg.chart").focus()
        for key in ("Home", "ArrowRight", "ArrowDown"):
            shown.tab.keyboard.press(key)
        assert shown.texts("#tip") == ["b, 1: −39"]
        shown.tab.keyboard.press("End")
        assert shown.texts("#tip") == ["c, 59: 78"]
        box, tip = (shown.tab.locator(each).bounding_box() for each in ("#wide > .wide", "#tip"))
        assert tip["x"] + tip["width"] <= 600
        mark = shown.tab.locator(".mark.current").bounding_box()
        assert box["x"] <= mark["x"] <= box["x"] + box["width"]  # scrolled into view


@pytest.mark.slow
def test_the_tab_key_goes_through_a_page_in_order(browser: Any, page: Path) -> None:
    with opened(browser, page) as shown:
        shown.tab.keyboard.press("Tab")
        assert shown.tab.evaluate("document.activeElement.textContent") == "Skip to the content"
        shown.tab.keyboard.press("Enter")
        shown.tab.keyboard.press("Tab")
        assert shown.tab.evaluate("document.activeElement.className") == "filter"
        outline = shown.tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"


def test_a_page_without_its_script_shows_tables_and_values(browser: Any, page: Path) -> None:
    with opened(browser, page, java_script_enabled=False) as shown:
        assert shown.texts("#models tbody th") == NAMES
        assert shown.texts("#models .tools") == []
        assert shown.tab.locator("#points .mark title").first.text_content() == "base, x: 2.0 (1.9 to 2.1)"


def test_a_page_is_printed_in_black_on_white(browser: Any, page: Path) -> None:
    with opened(browser, page, color_scheme="dark") as shown:
        shown.tab.emulate_media(media="print", color_scheme="dark")
        assert shown.tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert shown.texts("nav") == []


LONG = "a heading that has many more characters than there is room for in a chart"


def test_titles_of_charts_are_not_cut_off(browser: Any, tmp_path: Path) -> None:
    charts = [
        dots("points", "Dots", [DotRow("a")], [DotPanel(LONG, [Dot(1.0)])]),
        lines("curves", "Lines", "x", [LinePanel(LONG, [Line("a", [Point(0.0, 1.0), Point(1.0, 2.0)])])]),
    ]
    write_page(tmp_path / "page.html", Page("A page", [Section("charts", "Charts", charts)]))
    with opened(browser, tmp_path / "page.html") as shown:
        for svg in shown.tab.locator("svg.chart").all():
            title, chart = svg.locator(".title").bounding_box(), svg.bounding_box()
            assert title["x"] + title["width"] <= chart["x"] + chart["width"]


def test_names_of_dotted_lines_that_are_close_are_not_struck_through(browser: Any, tmp_path: Path) -> None:
    curve = Line("a", [Point(0.0, 0.0), Point(1.0, 100.0)])
    panels = [LinePanel(str(gap), [curve], [("base", 50.0), ("best expert", 50.0 + gap)]) for gap in (-4, 4, 40)]
    page = Page("A page", [Section("charts", "Charts", [lines("curves", "Lines", "x", panels)])])
    write_page(tmp_path / "page.html", page)
    with opened(browser, tmp_path / "page.html") as shown:
        for svg in shown.tab.locator("svg.chart").all():
            rules = [each.bounding_box()["y"] for each in svg.locator(".reference").all()]
            names = [each.bounding_box() for each in svg.locator(".on-lines").all()]
            assert len(rules) == len(names) == 2
            inks = [(box["y"] + 4, box["y"] + box["height"] - 4) for box in names]  # without the air round letters
            assert not [rule for rule in rules for top, bottom in inks if top < rule < bottom]


def test_rows_are_not_tall_on_a_phone(browser: Any, tmp_path: Path) -> None:
    columns = [Column("role"), *(Column(f"expert {at}", True) for at in range(5)), Column("in the merge")]
    rows = [["language_model", *[0.5] * 5, "kept as in the base"], ["norms", *[0.5] * 5, "mean of the experts"]]
    page = Page("A page", [Section("table", "Table", [table("roles", "Roles", columns, rows, tools=False)])])
    write_page(tmp_path / "page.html", page)
    with opened(browser, tmp_path / "page.html", **PHONE) as shown:
        assert [each.bounding_box()["height"] < 60 for each in shown.tab.locator("tbody tr").all()] == [True, True]
        assert not shown.is_wider_than_its_window()
