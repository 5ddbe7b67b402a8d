"""The page of `mergekit-mm inspect --html`: what it shows is what was found, in a browser too."""

from __future__ import annotations

import functools
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from browser import PHONE, opened
from end_to_end import altered, checkpoint, experts, fresh, plugin, with_method, written

from mergekit_mm import api
from mergekit_mm.analysis.numbers import percent
from mergekit_mm.analysis.page import as_page

HOSTILE = "<img src=x onerror=alert(1)>"
HEADINGS = ["Advice", "Experts", "Drift", "Pairs", "Spectra", "Interaction losses", "Outliers", "Files and notes"]


@functools.cache
def config() -> dict[str, Any]:
    """Two experts; one has a hostile name, and a matrix that stands out."""
    folder = fresh("experts")
    folder.mkdir()
    tail = "layers.0.mlp.up_proj.weight"
    loud = altered(experts("llava")[1], lambda found: {k: v + 0.3 * k.endswith(tail) for k, v in found.items()})
    named = folder / HOSTILE
    shutil.copytree(loud, named)
    return with_method("optmerge", checkpoint("llava"), [experts("llava")[0], named])


@functools.cache
def page() -> Path:
    path = fresh("pages") / "experts.html"
    result = plugin("inspect", written(config()), "--html", path)
    assert result.exit_code == 0, result.output
    assert f"{path} has them as a page." in result.output
    return path


def test_the_page_holds_figures_and_no_tag_of_a_name() -> None:
    text = page().read_text(encoding="utf-8")
    assert re.findall(r"<h2[^>]*>([^<]*)</h2>", text) == HEADINGS
    assert HOSTILE not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    found = api.inspect(config(), quiet=True)
    (roles,) = re.findall(r'id="roles-table".*?</table>', text.replace("<wbr>", ""), re.DOTALL)
    rows = re.findall(r"<tr>.*?</tr>", roles, re.DOTALL)[1:]
    for row, (role, group) in zip(rows, found.by_role.items(), strict=True):
        assert f">{role.value}</span></th>" in row
        assert all(f">{percent(drift)}</td>" in row for drift in group.drift)


def test_what_was_not_found_has_no_section() -> None:
    found = api.inspect(config(), layers=1, spectra=False, losses=False, quiet=True)
    headings = [section.heading for section in as_page(found).sections]
    assert headings == [each for each in HEADINGS if each not in ("Spectra", "Interaction losses")]
    alone = api.inspect(with_method("optmerge", checkpoint("llava"), experts("llava")[:1]), quiet=True)
    assert "Pairs" not in [section.heading for section in as_page(alone).sections]


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}, PHONE], ids=["wide", "dark", "phone"])
def test_it_opens_without_a_complaint_or_a_request(browser: Any, options: dict[str, Any]) -> None:
    with opened(browser, page(), **options) as shown:
        assert shown.texts("h2") == HEADINGS
        assert (shown.said, shown.requests) == ([], [page().as_uri()])
        assert not shown.is_wider_than_its_window()
        assert shown.lowest_contrast()[0] >= 4.5
        assert shown.tab.locator("img").count() == 0


def test_cells_of_a_heat_map_tell_their_values(browser: Any) -> None:
    found = api.inspect(config(), quiet=True)
    cells = found.cells(lambda group: 100 * float(group.drift[1]))["model.language_model.layers"]
    row = list(cells).index("mlp.up_proj")
    caption = r"Drift of B <img src=x onerror=alert\(1\)> in %, by part and layer of model.language_model.layers"
    with opened(browser, page()) as shown:
        figure = shown.tab.locator("figure").filter(has_text=re.compile(caption)).first
        figure.locator(f"g.cell[data-r='{row}'][data-c='0'] rect").hover(position={"x": 3, "y": 3})
        assert shown.texts("#tip") == [f"mlp.up_proj, 0: {cells['mlp.up_proj'][0]:.1f}"]


def test_outliers_are_sorted_and_filtered(browser: Any) -> None:
    with opened(browser, page()) as shown:
        shown.tab.locator("#outliers-table .filter").fill("up_proj")
        (first,) = shown.texts("#outliers-table tbody th")
        assert first == "model.language_model.layers.0.mlp.up_proj.weight"
