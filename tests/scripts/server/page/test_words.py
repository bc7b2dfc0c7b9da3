"""The page in a real browser: bars follow the text, and old answers are never shown; writing; errors."""

from __future__ import annotations

import json
import time

import pytest

from model.next_word.search import Search
from tests.scripts.server.page.browser import HOSTILE, after, ask, ready, rows, stream, text_of, until, words

pytestmark = pytest.mark.slow


def test_bars_follow_what_is_typed_and_are_said_once(open_page, address):
    page = open_page()
    until(page, "document.activeElement.id === 'text'")
    page.keyboard.type("Listen to your ")
    after(page, "Listen to your ")
    expected = ask(address, "v1/next_words", prompt="Listen to your ", top=15)["words"]
    found = rows(page)
    assert [word for word, _ in found] == [row["word"].replace(" ", "␣").replace("\n", "↵") for row in expected]
    assert float(found[0][1].split("–")[0].rstrip("%")) == pytest.approx(100 * expected[0]["lower"], abs=0.06)
    until(page, "document.querySelector('#said').textContent")
    assert page.text_content("#said").startswith(f"{found[0][0]} ")
    assert page.text_content("#problem") == ""


def test_bounds_are_drawn_and_tighten(open_page):
    first = words(("heart", 0.2), ("gut", 0.1)) | {"stopped": "searching"}
    first["words"][1]["upper"] = 0.15
    page = open_page(before=lambda page: page.route("**/next_words", lambda route: route.fulfill(body=stream(first))))
    page.wait_for_selector(".choice")
    assert rows(page) == [("heart", "20.0%"), ("gut", "10.0–15.0%")]
    widths = page.eval_on_selector_all(".track i", "all => all.map(e => e.style.width)")
    assert widths == ["100%", "100%", "75%", "50%"]


def test_a_slow_answer_to_an_old_text_is_never_shown(open_page):
    held = []

    def answer(route):
        prompt = route.request.post_data_json["prompt"]
        if prompt == "a":
            held.append(route)
        else:
            route.fulfill(body=stream(words((f"new{prompt}", 0.5))))

    def before(page):  # even if the browser does not end the old request
        page.add_init_script("AbortController.prototype.abort = () => {}")
        page.route("**/next_words", answer)

    page = open_page(before=before)
    page.keyboard.type("a")
    page.wait_for_timeout(100)
    page.keyboard.type("b")
    after(page, "ab")
    assert held
    held[0].fulfill(body=stream(words(("stale", 0.9))))
    page.wait_for_timeout(300)
    assert rows(page) == [("newab", "50.0%")] and "ab" in page.text_content(".side h2")


def test_bars_of_an_older_text_cannot_be_chosen(open_page):
    def answer(route):
        if route.request.post_data_json["prompt"] == "":
            route.fulfill(body=stream(words(("heart", 0.5))))

    page = open_page(before=lambda page: page.route("**/next_words", answer))
    page.wait_for_selector(".choice")
    page.keyboard.type("a")
    page.wait_for_selector(".bars[aria-busy]")
    page.click(".choice")
    assert text_of(page) == "a"


def test_a_new_text_ends_the_search_on_the_server(open_page, monkeypatch):
    searches, expand = [], Search.expand

    def slowly(self, children):
        searches.append(id(self))
        time.sleep(0.02)
        return expand(self, children)

    page = open_page("model=bytes")
    ready(page)
    monkeypatch.setattr(Search, "expand", slowly)
    page.keyboard.type("a")
    page.wait_for_timeout(150)
    page.keyboard.type("b")
    after(page, "ab")
    one, *_, last = searches
    assert one != last and len(set(searches)) == 2
    assert searches == sorted(searches, key=lambda search: search == last)  # the first one did not go on


def test_words_are_chosen_appended_and_taken_back_by_keyboard(open_page):
    table = words(("heart", 0.5), ("gut", 0.3), ("<|endoftext|>", 0.1))
    table["words"][2]["kind"] = "special"
    page = open_page(before=lambda page: page.route("**/next_words", lambda route: route.fulfill(body=stream(table))))
    page.keyboard.type("to your ")
    after(page, "to your ")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert text_of(page) == "to your gut"
    after(page, "to your gut")
    page.keyboard.press("Enter")
    assert text_of(page) == "to your gut heart"
    after(page, "to your gut heart")
    page.keyboard.press("End")
    page.keyboard.press("Enter")  # a special token is no text
    assert text_of(page) == "to your gut heart" and "not text" in page.text_content("#problem")
    page.keyboard.press("Backspace")
    assert text_of(page) == "to your gut"
    page.keyboard.type("s")  # returns to the text
    assert text_of(page) == "to your guts"
    page.keyboard.press("Backspace")
    page.keyboard.press("Backspace")  # the word that was appended
    assert text_of(page) == "to your "
    page.keyboard.press("Backspace")  # typed: a letter at a time
    assert text_of(page) == "to your"
    tree = page.eval_on_selector_all("#tree button", "all => all.map(e => e.textContent)")
    assert tree == ["to your ", "gut", "heart"]
    page.focus("#tree button[tabindex='0']")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    assert text_of(page) == "to your gut heart"


def test_text_is_written_until_it_is_stopped(open_page):
    page = open_page("text=Listen&temperature=0.5")
    ready(page)
    page.keyboard.press("Control+Enter")
    until(page, "document.querySelector('#text').value.length > 8")
    until(page, "document.querySelector('#write').textContent === 'Generate'")
    written = text_of(page)
    assert written.startswith("Listen") and "#" in page.url
    page.focus("#text")
    page.evaluate("document.querySelector('#text').setSelectionRange(9999, 9999)")
    page.keyboard.press("Backspace")
    assert text_of(page) == "Listen"
    after(page, "Listen")


def test_sliders_show_the_mass_that_they_remove(open_page, address):
    page = open_page("text=Listen+to")
    ready(page)
    page.focus("#top_k")
    page.keyboard.press("Home")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    until(page, "document.querySelector('#top_k').ariaValueText.includes('removes')")
    [removed] = [
        row["removed"]
        for row in ask(address, "v1/next_tokens", prompt="Listen to", top_k=8, top=1)["filters"]
        if row["name"] == "top_k"
    ]
    assert page.get_attribute("#top_k", "aria-valuetext") == f"8 removes {100 * removed:.1f}%"
    ready(page)
    assert "top_k=8" in page.evaluate("new Promise(done => setTimeout(() => done(location.hash), 400))")


def test_two_models_stand_side_by_side_with_the_words_that_moved(open_page):
    tables = {"letters": words(("heart", 0.5), ("gut", 0.2)), "bytes": words(("gut", 0.6), ("wind", 0.3))}

    def answer(route):
        route.fulfill(body=stream(tables[route.request.post_data_json["model"]]))

    page = open_page("beside=bytes", before=lambda page: page.route("**/next_words", answer))
    page.wait_for_selector(".moved tbody tr")
    moved = page.eval_on_selector_all(".moved tbody tr", "all => all.map(e => [...e.children].map(c => c.textContent))")
    assert [row[:4] for row in moved] == [
        ["heart", "50.0%", "< 0%", "−50.0"],
        ["gut", "20.0%", "60.0%", "+40.0"],
        ["wind", "< 0%", "30.0%", "+30.0"],
    ]


def test_a_server_that_is_gone_is_said_and_asked_again(open_page):
    page = open_page("text=Listen", expected=["ERR_FAILED"])
    ready(page)
    page.route("**/next_words", lambda route: route.abort())
    page.keyboard.type("s")
    until(page, "document.querySelector('#problem').textContent.includes('not responding')")
    page.unroute("**/next_words")
    after(page, "Listens")
    assert page.text_content("#problem") == ""


def test_an_error_is_said_in_one_line(open_page):
    page = open_page("text=Listen", expected=["400"])
    ready(page)
    body = json.dumps({"error": {"message": f"no {HOSTILE}"}})
    page.route("**/next_words", lambda route: route.fulfill(status=400, body=body))
    page.keyboard.type("s")
    until(page, "document.querySelector('#problem').textContent")
    assert page.text_content("#problem") == f"no {HOSTILE}"
