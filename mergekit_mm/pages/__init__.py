"""Self-contained HTML pages: one file that opens from a disk, without a server and without a network.

| file | what it holds |
|---|---|
| `page.py` | `Page` and `Section`; a page as text, and written whole or not at all |
| `tables.py` | tables that the reader sorts, filters and chooses columns of |
| `charts.py`, `heat_maps.py` | dots with intervals, lines, heat maps, as SVG with a value behind every mark |
| `figures.py`, `scales.py` | what charts share: drawings, marks, legends; ticks, levels of colour, numbers as text |
| `markup.py` | HTML and SVG tags, and data as JSON inside of a page |
| `templates/` | the page, a table and a figure (jinja2) |
| `style.css`, `page.js` | the style sheet and the script of every page |

Charts are SVG made here, and not those of a library: plotly.js adds 4.8 MB to each page and Vega-Lite with Vega 0.8 MB,
which would have to be kept here and followed by hand; the style sheet and the script of this room are 16 kB. What it
lacks of them (zooming, other kinds of charts) its pages do not use.

Every text is escaped, by jinja2 and MarkupSafe, by `json_block` for data, and in scripts, which set `textContent` and
never HTML; characters that are not seen, or that turn text around, are written out. The page's own content security
policy names its scripts by their hashes and forbids every request, so that a text that came through all the same would
not run.

This room may import `errors` and libraries, and no other room: what is shown is not its business.
"""

from mergekit_mm.pages.charts import Dot, DotPanel, DotRow, Line, LinePanel, Point, dots, lines
from mergekit_mm.pages.heat_maps import heat_map
from mergekit_mm.pages.markup import json_block, tag
from mergekit_mm.pages.page import Page, Section, write_page
from mergekit_mm.pages.tables import Cell, Column, table

__all__ = [
    "Cell",
    "Column",
    "Dot",
    "DotPanel",
    "DotRow",
    "Line",
    "LinePanel",
    "Page",
    "Point",
    "Section",
    "dots",
    "heat_map",
    "json_block",
    "lines",
    "table",
    "tag",
    "write_page",
]
