"""Random models behind a server: a plain one, one with labels, one that chats. Answers are the models' own."""

from __future__ import annotations

import io

import pytest

pytest.importorskip("starlette")

from data.labelled.templates import CHAT_TEMPLATES, Task
from data.tokenizers.build import TokenizerConfig, build
from model.inference.engine import Engine
from model.language_model import LanguageModel
from scripts.server.app import make_app
from scripts.server.middleware import Rules
from scripts.server.models import Models, Served
from tests.families import make
from tests.model.inference.helpers import CPU
from tests.scripts.server.client import Client

TASKS = {
    "plain": None,
    "labels": Task("{text} is", " {label}", ("good", "bad", "so so"), temperature=2.5),
    "chat": Task(chat=CHAT_TEMPLATES["chatml"]),
}
SLOTS, QUEUE = 4, 4


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    served = []
    for name, task in TASKS.items():
        directory = tmp_path_factory.mktemp(name)
        if task is not None:
            task.save(directory)
        tokenizer = build(TokenizerConfig(kind="byte", special_tokens=["<|im_start|>", "<|im_end|>"]), [])
        model = make("modern", vocab_size=tokenizer.vocab_size, context=160, n_layer=1, d_model=32)
        lm = LanguageModel(model, tokenizer, CPU, directory, labels=task)
        served.append(Served(name, lm, Engine(model, lm.vocabulary, CPU, slots=SLOTS, queue=QUEUE)))
    found = Models(served)
    yield found
    found.close()


@pytest.fixture(scope="session")
def lms(models):
    """The models themselves, by name."""
    return {name: served.lm for name, served in models.by_name.items()}


@pytest.fixture
def log():
    return io.StringIO()


@pytest.fixture
def make_client(models, log):
    """A client of a server with other rules."""

    def make(headers=None, **rules):
        return Client(make_app(models, Rules(**rules), log=log), **(headers or {}))

    return make


@pytest.fixture
def client(make_client):
    return make_client()
