"""The page's files: small, of this origin only, and no way for a text to become HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("starlette")

from scripts.server.app import MEDIA_TYPES, PAGE, page_paths

FILES = sorted(path for path in PAGE.iterdir() if path.suffix in MEDIA_TYPES)
NAMESPACE = 'xmlns="http://www.w3.org/2000/svg"'  # a name, which nothing loads
VOID = {"meta", "link", "input", "br", "img"}


class Elements(HTMLParser):
    """All start tags, in order; raises if a tag is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        assert not (self.open and self.open[-1] in ("script", "style") and data.strip()), "inline code"


@pytest.fixture(scope="module")
def elements():
    parser = Elements()
    parser.feed((PAGE / "index.html").read_text(encoding="utf-8"))
    parser.close()
    assert not parser.open
    return parser.found


def test_all_files_together_are_at_most_60_kilobytes():
    assert sum(path.stat().st_size for path in FILES) <= 60_000
    assert {"/index.html", "/page.js", "/page.css"} <= set(page_paths())


def test_the_page_is_well_formed_and_each_control_has_a_name(elements):
    names = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(names) == len(set(names))
    labelled = {attributes["for"] for tag, attributes in elements if tag == "label"}
    controls = {attributes["id"] for tag, attributes in elements if tag in ("input", "select", "textarea")}
    assert controls == labelled
    assert not [attributes for _, attributes in elements for name in attributes if name.startswith(("on", "style"))]


def test_a_module_finds_every_element_that_it_names(elements):
    names = {attributes.get("id") for _, attributes in elements}
    code = (PAGE / "page.js").read_text(encoding="utf-8")
    assert set(re.findall(r'\bat\("([\w-]+)"\)', code)) <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_is_loaded_from_elsewhere_and_no_text_becomes_html_or_code(path):
    text = path.read_text(encoding="utf-8").replace(NAMESPACE, "")
    assert not re.search(r"//[\w.-]+\.\w|https?:|@import|url\(", text.replace("// ", ""))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc", text)
    for name in re.findall(r'(?:from|href=|src=)\s*"([^"]+)"', text):
        assert (PAGE / name).exists(), name
