"""The page in a real browser: its views, by keyboard and for everyone; what it saves; what its address holds."""

from __future__ import annotations

import csv
import io

import pytest

from tests.scripts.server.page.browser import (
    HOSTILE,
    VIEWS,
    after,
    ask,
    axe_script,
    ready,
    rows,
    stream,
    text_of,
    words,
)  # fmt: skip

pytestmark = pytest.mark.slow


def test_every_control_is_reached_by_tab_and_none_traps_it(open_page):
    page = open_page("text=Listen&beside=bytes&branch=Listen&branch=Listen+to")
    ready(page)
    name = "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
    reached = []
    while len(reached) < 60 and reached.count("csv") < 2:
        page.keyboard.press("Tab")
        reached.append(page.evaluate(name))
    expected = {"model", "beside", "theme", "text", "write", "temperature", "top_k", "top_p", "tab-words", "csv", "png"}
    assert expected | {"bars-0", "bars-1", "forget"} <= set(reached) and len(reached) < 60


def test_views_and_surprise_by_keyboard(open_page):
    page = open_page("text=Listen+to+your+heart")
    ready(page)
    page.focus("#tab-words")
    page.keyboard.press("ArrowRight")
    ready(page, "surprise")
    pieces = page.eval_on_selector_all(".words button", "all => all.map(e => e.querySelector('bdi').textContent)")
    assert pieces == ["Listen", "to", "your", "heart"]
    page.focus("#text")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('.pop').contains(document.activeElement)")
    page.keyboard.press("Escape")
    assert page.is_hidden(".pop") and "to," in page.evaluate("document.activeElement.ariaLabel")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    choice = page.evaluate("document.activeElement.querySelector('bdi').textContent")
    page.keyboard.press("Enter")
    assert text_of(page) == "Listen" + choice.replace("␣", " ").replace("↵", "\n")
    for view in ("attention", "lens"):
        page.focus("[role=tab][tabindex='0']")
        page.keyboard.press("ArrowRight")
        ready(page, view)
        page.focus("#text")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Home")
        assert page.get_attribute(".tokens button >> nth=0", "aria-pressed") == "true"


def test_surprisal_is_the_servers_in_colour_and_number(open_page, address):
    page = open_page("text=Listen+to%0Ayour&view=surprise")
    ready(page, "surprise")
    expected = ask(address, "v1/surprisal", text="Listen to\nyour".replace(" to", " to"))["words"]
    shown = page.eval_on_selector_all(".words small", "all => all.map(e => Number(e.textContent))")
    assert shown == pytest.approx([-row["logprob"] / 0.6931472 for row in expected], abs=0.06)
    shades = page.eval_on_selector_all(".words button", "all => all.map(e => +e.style.getPropertyValue('--shade'))")
    assert shades == pytest.approx([min(1, number / 14) for number in shown], abs=0.01)
    page.hover(".words button >> nth=1")
    page.hover(".pop button >> nth=0")  # the alternatives stay while the mouse is among them
    page.wait_for_timeout(400)
    page.click(".pop button:enabled >> nth=0")
    assert text_of(page).startswith("Listen") and text_of(page) != "Listen to\nyour"


def test_a_models_text_never_becomes_html(open_page):
    hostile = words((HOSTILE, 0.6), ("\u202e evil\n", 0.2))
    page = open_page(before=lambda page: page.route("**/next_words", lambda route: route.fulfill(body=stream(hostile))))
    page.wait_for_selector(".choice")
    assert [word for word, _ in rows(page)] == [HOSTILE.replace(" ", "␣"), "\\u{202e}␣evil↵"]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert text_of(page).strip() == HOSTILE
    for view in VIEWS:
        page.click(f"#tab-{view}")
        ready(page, view)
        assert not page.query_selector("img") and page.title() == "nextword"


def test_parts_of_characters_and_white_space_are_visible(open_page):
    page = open_page("text=na%C3%AFve+x&view=attention&model=bytes")
    ready(page, "attention")
    tokens = page.eval_on_selector_all(".tokens button", "all => all.map(e => e.textContent)")
    assert tokens == ["n", "a", "\\xc3", "\\xaf", "v", "e", "␣", "x"]


def test_what_is_shown_is_saved(open_page, address):
    page = open_page("text=Listen+to")
    for view in VIEWS:
        page.click(f"#tab-{view}")
        ready(page, view)
        with page.expect_download() as download:
            page.click("#csv")
        assert download.value.suggested_filename == f"{view}.csv"
        with open(download.value.path(), encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(io.StringIO(file.read())))
        assert table and all(row["model"] == "letters" for row in table)
        if view == "words":
            expected = ask(address, "v1/next_words", prompt="Listen to", top=15)["words"]
            assert [row["word"] for row in table] == [row["word"] for row in expected]
            assert [float(row["lower"]) for row in table] == [row["lower"] for row in expected]
        with page.expect_download() as download:
            page.click("#png")
        with open(download.value.path(), "rb") as file:
            raw = file.read()
        assert raw.startswith(b"\x89PNG") and len(raw) > 5000


def test_the_address_holds_the_state(open_page):
    state = "text=Listen+to&view=lens&model=bytes&temperature=0.7&top_k=30&top_p=0.9&branch=Listen"
    page = open_page(state)
    ready(page, "lens")
    page.keyboard.press("End")
    page.keyboard.type(" me")
    page.wait_for_timeout(500)
    address = page.url
    other = open_page(address.partition("#")[2])
    ready(other, "lens")
    values = [other.input_value(f"#{name}") for name in ("text", "model", "temperature", "top_p")]
    assert values == ["Listen to me", "bytes", "0.7", "0.9"]
    assert other.get_attribute("#tab-lens", "aria-selected") == "true"
    assert other.get_attribute("#top_k", "aria-valuetext").startswith("30")
    assert other.text_content("#tree button") == "Listen"
    other.evaluate("location.hash = 'text=Dear&top_k=nonsense'")
    after(other, "Dear")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(open_page, scheme):
    script = axe_script()
    page = open_page("text=Listen+to+your&beside=bytes&top_k=20&branch=Listen&branch=Listen+to", color_scheme=scheme)
    for view in VIEWS:
        page.click(f"#tab-{view}")
        ready(page, view)
        if view == "surprise":
            page.focus(".words button >> nth=1")
        page.wait_for_timeout(400)  # colours have settled
        page.evaluate(script)
        found = page.evaluate("axe.run()")["violations"]
        assert not [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found], view


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(open_page, width):
    page = open_page("text=Listen+to+your+heart&beside=bytes", viewport={"width": width, "height": 740})
    for view in VIEWS:
        page.click(f"#tab-{view}")
        ready(page, view)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view


def test_the_theme_is_chosen_and_kept(open_page):
    page = open_page()
    colour = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(colour)
    page.click("#theme")
    page.click("#theme")
    assert page.evaluate(colour) != before and page.get_attribute("#theme", "aria-label") == "Colours: dark"
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
