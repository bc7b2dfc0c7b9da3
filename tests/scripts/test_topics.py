"""scripts.topics, scripts.languages: examples show what they ask for, without giving it away."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from data.corpus.wikipedia import Article, articles
from scripts.languages import LABELS
from scripts.topics import without_title
from tests.programs import ok, one_line, run


def sides(folder) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    found = [[json.loads(line) for line in (folder / name).open()] for name in ("train.jsonl", "held_out.jsonl")]
    train, held_out = found
    assert not {row["group"] for row in train} & {row["group"] for row in held_out}
    return train, held_out


@pytest.mark.parametrize(
    "title, text, left",
    [
        ("Han dynasty", "The Han dynasty was a dynasty. HAN's end", "The ___ was a ___. ___ end"),
        ("Tomato", "A tomato is a fruit; tomatoes and automation", "A ___ is a fruit; ___ and automation"),
        ("War of the Worlds", "The wars of worlds, the end of it", "The ___ of ___, the end of it"),
        ("Casablanca (film)", "Casablanca is a film.", "___ is a film."),
        ("Jean-Paul Sartre", "Sartre, Jean-Paul, né Jean Sartre", "___, ___, né ___"),
        ("C++", "C++ is not C, nor C+.", "___ is not C, nor C+."),
        ("Émile Zola", "ÉMILE ZOLA’s book, in Emile's words", "___ book, in Emile's words"),
    ],
)
def test_a_title_and_its_words_are_blanked(title, text, left):
    assert without_title(Article(title, text, "Arts")) == left


def test_topics_are_split_by_article_and_balanced(wikipedia, tmp_path):
    arguments = [f"datasets={wikipedia}", f"run_dir={tmp_path}/made", "val_fraction=0.4", "longest=20"]
    printed = ok("topics", *arguments)
    train, held_out = sides(tmp_path / "made")
    assert f"{len(train)} examples ({Counter(row['label'] for row in train)['Arts']} Arts, " in printed
    assert "CC BY-SA 4.0" in printed
    topics = {article.title: article.topic for article in articles("en", wikipedia)}
    assert {row["group"]: row["label"] for row in train + held_out} == {
        title: topic for title, topic in topics.items() if topic != "Uncategorized"
    }
    assert all(row.keys() == {"text", "label", "group"} for row in train)
    for row in train + held_out:
        assert row["text"].startswith("___ is number") and "subject" not in row["text"].lower()
        assert len(row["text"].split()) <= 20
    before = (tmp_path / "made" / "train.jsonl").read_bytes()
    ok("topics", *arguments)
    assert (tmp_path / "made" / "train.jsonl").read_bytes() == before
    ok("topics", *arguments, "per_label=3", "held_out_per_label=1", "language=es")
    train, held_out = sides(tmp_path / "made")
    assert Counter(row["label"] for row in train) == {"Arts": 3, "History": 3}
    assert Counter(row["label"] for row in held_out) == {"Arts": 1, "History": 1}
    assert all(row["group"].endswith(" of es") for row in train + held_out)


def test_passages_are_words_of_an_article_in_its_language(wikipedia, tmp_path):
    arguments = [f"datasets={wikipedia}", f"run_dir={tmp_path}/made", "val_fraction=0.3"]
    assert "English" in ok("languages", *arguments, "shortest=2", "longest=6")
    train, held_out = sides(tmp_path / "made")
    assert {row["label"] for row in train} == {row["label"] for row in held_out} == {"English", "French", "Spanish"}
    lengths = set()
    for row in train + held_out:
        language, title = row["group"].split(": ")
        (text,) = [article.text for article in articles(language, wikipedia) if article.title == title]
        assert row["text"] in " ".join(text.split()) and row["label"] == LABELS[language]
        lengths.add(len(row["text"].split()))
    assert lengths == {2, 3, 4, 5, 6}


@pytest.mark.parametrize(
    "program, setting, part",
    [
        ("topics", "language=de", "language=de must be one of en, fr, es"),
        ("topics", "val_fraction=0", "no held_out examples: val_fraction=0.0 must be between 0 and 1"),
        ("languages", "val_fraction=1", "no train examples: "),
        ("languages", "shortest=40", "shortest=40 must be between 1 and longest=30"),
    ],
)
def test_settings_that_ask_for_nothing_are_refused(wikipedia, tmp_path, program, setting, part):
    assert part in one_line(run(program, f"datasets={wikipedia}", f"run_dir={tmp_path}/made", setting))
    assert not (tmp_path / "made").exists()
