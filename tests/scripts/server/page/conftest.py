"""A server of two random models, a browser, and the page in it."""

from __future__ import annotations

import pytest

pytest.importorskip("uvicorn")

from data.tokenizers.build import TokenizerConfig, build
from model.inference.engine import Engine
from model.language_model import LanguageModel
from scripts.server.models import Models, Served
from tests.conftest import POEM
from tests.families import make
from tests.model.inference.helpers import CPU
from tests.scripts.server.page.browser import chromium, serving, until


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Two random models: of the characters of a poem, and of bytes, which predicts parts of characters."""
    served = []
    for number, (name, kind) in enumerate({"letters": "char", "bytes": "byte"}.items()):
        tokenizer = build(TokenizerConfig(kind=kind), [POEM])
        model = make("modern", vocab_size=tokenizer.vocab_size, context=160, n_layer=2, d_model=32, seed=number)
        lm = LanguageModel(model, tokenizer, CPU, tmp_path_factory.mktemp(name))
        served.append(Served(name, lm, Engine(model, lm.vocabulary, CPU, slots=4, queue=16)))
    models = Models(served)
    with serving(models) as found:
        yield found
    models.close()


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def open_page(browser, address):
    """Opens the page with a state in its address; nothing may be written to the console, but what is expected."""
    contexts, said = [], []

    def call(state="", *, expected=(), before=lambda page: None, **options):
        contexts.append(browser.new_context(accept_downloads=True, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.set_default_timeout(20_000)
        before(page)
        page.goto(f"{address}/#{state}")
        until(page, "document.querySelector('#model').options.length")
        allowed.extend(expected)
        return page

    allowed: list[str] = []
    yield call
    for context in contexts:
        context.close()
    assert not [line for line in said if not any(part in line for part in allowed)]
