"""scripts.cloze: questions can be answered from the play, and only from it."""

from __future__ import annotations

from collections import Counter

from data.corpus.corpora import Document
from data.labelled.choices import read_choices
from scripts import cloze
from tests.programs import ok, one_line, run

WORDS = ["night", "light", "sight", "fight", "knight", "king", "ring", "thing", "sting", "overflowing"]
PLAY = "# A Play\n\n" + "\n\n".join(
    f"**SPEAKER**  \nWhen shall we three meet again in thunder  \nOr in the rain of this most dreadful {word},  \n"
    f"_Exit_\nThen let us number {number} go and seek the {WORDS[number % 7]}."
    for number, word in enumerate(WORDS * 2)
)


def test_a_gap_is_the_last_word_of_a_line_of_verse():
    found = list(cloze.gaps(PLAY, before=40, least=12))
    assert len(found) == 2 * 20 and {word for _, word in found} == {f" {word}" for word in WORDS}
    prompt, word = found[0]
    assert (
        prompt == "When shall we three meet again in thunder  \nOr in the rain of this most dreadful"
        and word == " night"
    )
    assert "SPEAKER" not in prompt and "Exit" not in found[1][0]
    short = list(cloze.gaps(PLAY, before=3, least=1))
    assert all("\n" not in prompt for prompt, _ in short)  # no whole line before fits


def test_questions_from_held_out_plays_alone(tmp_path, monkeypatch):
    plays = [Document("tragedies/macbeth.md", PLAY), Document("comedies/other.md", PLAY.replace("dreadful", "happy"))]
    monkeypatch.setattr(cloze, "documents", lambda corpus, cache: iter(plays))
    path = tmp_path / "cloze.jsonl"
    arguments = [f"outputs={path}", "choices=3", "per_play=9"]
    assert "9 questions from 1 plays, 3 options each" in ok("cloze", *arguments)
    made = read_choices(path)
    before = path.read_bytes()
    assert len(made) == 9 and all(choice.group == "tragedies/macbeth.md" for choice in made)
    counts = Counter(word.strip(".,") for play in plays for word in play.text.split())
    for choice in made:
        assert len(choice.options) == 3 and "happy" not in choice.prompt
        true = choice.options[choice.answer]
        assert choice.prompt.splitlines()[-1] + true in PLAY
        for other in choice.options:
            assert cloze.ending(other) == cloze.ending(true) and abs(len(other) - len(true)) <= 2
            assert counts[true.strip()] / 2 <= counts[other.strip()] <= 2 * counts[true.strip()]
            assert other == true or other not in choice.prompt
    assert len({choice.answer for choice in made}) > 1
    ok("cloze", *arguments)
    assert path.read_bytes() == before


def test_settings_that_ask_for_nothing_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(cloze, "documents", lambda corpus, cache: iter([Document("a.md", PLAY)]))
    monkeypatch.chdir(tmp_path)
    assert "no lines to ask about" in one_line(run("cloze"))
    assert "choices=1 must be between" in one_line(run("cloze", "choices=1"))
