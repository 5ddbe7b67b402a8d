"""A page as data, as text, and as a file."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from mergekit_mm import __version__
from mergekit_mm.errors import system_errors
from mergekit_mm.pages.markup import HERE, render


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading, to which the list of contents leads.

    name: of the anchor, of letters and hyphens. blocks: texts become paragraphs; `Markup` is put in as it is.
    """

    name: str
    heading: str
    blocks: Sequence[str]


@dataclass(frozen=True)
class Page:
    """A whole page. lead: paragraphs beneath the title. style, script: of this page, after those of every page.

    data: blocks of `json_block`, which come before the script.
    """

    title: str
    sections: Sequence[Section]
    lead: Sequence[str] = ()
    data: Sequence[Markup] = ()
    style: str = ""
    script: str = ""

    def html(self) -> str:
        """The text of the file: all that the page shows, and nothing that it would have to fetch."""
        styles = [_asset("style.css"), *filter(None, [self.style])]
        scripts = [_asset("page.js"), *filter(None, [self.script])]
        return render(
            "page.html",
            page=self,
            policy=_policy(styles, scripts),
            version=__version__,
            styles=[Markup(each) for each in styles],
            scripts=[Markup(each) for each in scripts],
            is_markup=lambda block: isinstance(block, Markup),
        )


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _policy(styles: Sequence[str], scripts: Sequence[str]) -> str:
    """What the browser may do for this page: run its own scripts, show embedded media, and request nothing."""

    def hashes(texts: Sequence[str]) -> str:
        digests = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in texts]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    media = "img-src data:; media-src data:"
    return f"default-src 'none'; style-src {hashes(styles)}; script-src {hashes(scripts)}; {media}; base-uri 'none'"


def write_page(path: Path, page: Page) -> int:
    """Write a page to `path`, whole or not at all; folders on the way are made. Returns its size in bytes.

    MergeError: the system refuses it (no permission, no space).
    """
    content = page.html().encode()
    with system_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with open(handle, "wb") as file:
                file.write(content)
            os.chmod(name, 0o666 & ~_mask())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    return len(content)


def _mask() -> int:
    """The permissions that new files lack here; the temporary file has fewer than other files have."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
