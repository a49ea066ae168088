"""Parses a rendered report."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from lam_spark.report.content import ReportContext
from lam_spark.report.render import render

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Parses a document, asserts that its tags are nested, and keeps its text, tags and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.parts: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(html)
        self.close()

    @property
    def text(self) -> str:
        """The visible text with collapsed white space."""
        return re.sub(r"\s+", " ", "".join(self.parts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
            self.parts.append(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> has no start tag"
        assert self.open.pop() == tag
        self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.parts.append(data)


def page_of(context: ReportContext) -> Page:
    """Render a context and parse the document."""
    page = Page(render(context))
    assert page.open == []
    return page


def assert_sound(context: ReportContext) -> Page:
    """Assert that the page is well nested and shows no missing or broken number."""
    page = page_of(context)
    coordinates = " ".join(
        v for _, n, v in page.attributes if n in {"x", "y", "width", "height", "points", "viewbox"}
    )
    for bad in ("nan", "inf", "None", "Undefined"):
        assert not re.search(rf"\b{bad}\b", coordinates)
        assert not re.search(rf"\b{bad}\b", page.text)
    assert "nan" not in page.text.lower().split()
    return page
