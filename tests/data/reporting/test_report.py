"""The data report: statistics equal a naive count, however the work is divided; findings name problems and settings."""

from __future__ import annotations

import json
import pickle
import random
import shlex
import unicodedata
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest

from conf import cli
from data.corpus.corpora import Document
from data.curation.curate import CurateConfig, clean
from data.curation.removals import Removals
from data.preparation.config import PrepareConfig
from data.reporting.advice import code, findings
from data.reporting.frequent_lines import FrequentLines
from data.reporting.report import report, summarize, windows
from data.reporting.statistics import Statistics
from data.tokenizers import build as tokenizers
from data.tokenizers.build import TokenizerConfig
from tests.messy import BOILERPLATE, documents
from tests.survey import survey

BYTE = tokenizers.build(TokenizerConfig(kind="byte"), [])


def counted(some: list[Document], **options) -> Statistics:
    statistics = Statistics(BYTE.vocab_size, **options)
    for document in some:
        statistics.add(document, np.array(BYTE.encode(document.text), np.uint32), source=document.name.split("/")[0])
    return statistics


def test_statistics_equal_a_naive_count():
    some = documents(120, seed=2)
    found = counted(some).to_dict(BYTE)
    text = "".join(document.text for document in some)
    assert found["documents"] == 120 and found["bytes"] == found["tokens"] == len(text.encode())
    assert sum(row["documents"] for row in found["lengths"]) == 120
    assert sum(row["tokens"] for row in found["lengths"]) == found["tokens"]
    look = found["looked_at"]
    assert look["characters"] == sum(look["classes"].values()) == len(text)
    assert look["classes"]["digits"] == sum(c.isnumeric() for c in text)
    letters = Counter(c for c in text if "\u0400" <= c <= "\u04ff")
    (cyrillic,) = [row for row in look["scripts"] if row["script"] == "Cyrillic"]
    assert cyrillic["letters"] == letters.total() and cyrillic["different"] == len(letters)
    assert cyrillic["documents"] == sum("Пациенты" in document.text for document in some)
    assert sum(look["shares"]["letters"]) == 120
    for row in look["fewest_letters"]:
        (text_of,) = {document.text for document in some if document.name == row["name"]}
        letters_of = sum(unicodedata.category(c)[0] in "LM" for c in text_of)
        assert row["share"] == round(letters_of / max(1, len("".join(text_of.split()))), 4)
    assert sum(row["times"] for row in look["unusual"]) == sum(text.count(c) for c in "\xad\x07\ufffd")
    lines = Counter(line.strip() for line in text.split("\n"))
    assert {row["line"]: row["times"] for row in look["lines"]}[BOILERPLATE] == lines[BOILERPLATE]
    assert found["vocabulary"]["used"] == len(set(text.encode()))
    assert found["longest"][0]["bytes"] == max(len(document.text.encode()) for document in some)


def test_merged_statistics_of_parts_equal_those_of_the_whole():
    some = documents(90)
    parts = [pickle.loads(pickle.dumps(counted(some[start : start + 30]))) for start in (0, 30, 60)]
    for part in parts[1:]:
        parts[0].merge(part)
    whole, merged = counted(some).to_dict(BYTE), parts[0].to_dict(BYTE)
    assert json.loads(json.dumps(merged)) == json.loads(json.dumps(whole))


def test_memory_and_pickles_do_not_grow_with_the_corpus():
    rng = random.Random(0)
    statistics, sizes = Statistics(BYTE.vocab_size), []
    statistics.text_stats.lines = FrequentLines(capacity=50)
    for number in range(2000):
        text = "".join(f"line {rng.random()} of many\n" for _ in range(20))
        statistics.add(Document(f"{number:05d}", text), np.zeros(100, np.uint16))
        if number in (400, 1999):
            sizes.append(len(pickle.dumps(statistics)))
    assert sizes[1] < 1.2 * sizes[0] and len(statistics.text_stats.lines.counts) <= 250 + 20


def test_the_detailed_statistics_sample_the_same_documents_in_every_process():
    some = [Document(f"{number}.txt", "text\n") for number in range(2000)]
    half = counted(some, sample_fraction=0.5)
    assert half.documents == 2000 and 900 < half.text_stats.documents < 1100
    parts = [counted(some[:700], sample_fraction=0.5), counted(some[700:], sample_fraction=0.5)]
    assert parts[0].text_stats.documents + parts[1].text_stats.documents == half.text_stats.documents


def test_counts_of_a_sample_are_scaled_to_all_documents():
    some = [
        Document(f"{n}.txt", f"{n} text und Ã¼ber\x07 {BOILERPLATE}\n{'1' * 200 * (n % 4 == 0)}") for n in range(2000)
    ]
    for share, words in ((1, "**500 documents**"), (0.25, "**about ")):
        statistics = {"train": counted(some, sample_fraction=share)}
        text = report(summarize(statistics, Removals(), BYTE, settings=asdict(CurateConfig())), title="sample")
        decide = text.split("## Findings")[1].split("##")[0]
        (few,) = [line for line in decide.split("\n") if "min_letters" in line]
        assert ("about" in decide) == ("random sample" in decide) == (share < 1)
        number = few.split("**")[1].removeprefix("about ").split()[0]
        assert (words in few) if share == 1 else 400 <= int(number) <= 600, few
        assert ("**2,000 documents**" if share == 1 else "**about 2,000 documents**") in decide
        assert ("**2,000 control" if share == 1 else "**about 2,000 control") in decide


def test_frequent_lines_survive_any_number_of_rare_ones():
    rng = random.Random(1)
    tables = [FrequentLines(capacity=20) for _ in range(3)]
    times = Counter[str]()
    for _ in range(300):
        lines = [f"a rare line {rng.random()}" for _ in range(20)] + [f"frequent line {rng.randrange(5)}"] * 3
        times.update(lines)
        rng.choice(tables).add("\n".join(lines))
    for table in tables[1:]:
        tables[0].merge(table)
    assert tables[0].missed <= times.total() / 20
    for row in tables[0].most(5):
        assert row["line"].startswith("frequent")
        assert row["times"] <= times[row["line"]] <= row["times"] + tables[0].missed


def test_removals_are_counted_to_the_byte():
    some = documents(400)
    rules = CurateConfig(near_duplicates=True, min_letters=0.5, drop_lines="*rights reserved*", line_copies=3)
    summary, kept = survey(some, BYTE, config=rules)
    dropped = [entry for entry in summary["curation"].values() if not entry["count"]]
    inside = [entry for entry in summary["curation"].values() if entry["count"]]
    left = sum(len(members) for members in kept.values())
    assert left + sum(entry["documents"] for entry in dropped) == len(some) == summary["read"]["documents"]
    n_bytes = sum(split["bytes"] for split in summary["splits"].values())
    all_bytes = sum(len(document.text.encode()) for document in some)
    assert n_bytes + sum(entry["bytes"] for entry in dropped + inside) == all_bytes
    assert {"duplicate", "near duplicate", "drop_lines", "min_letters", "empty"} <= set(summary["curation"])
    assert not {d.text for d in kept["train"]} & {d.text for d in kept["val"]}


def test_the_report_names_what_needs_a_decision():
    summary, _ = survey(documents(600), BYTE)
    text = report(json.loads(json.dumps(summary)), title="messy | corpus", picture="report.png")
    decide = text.split("## Findings")[1].split("##")[0]
    settings = ["near_duplicates", "repair_mojibake", "drop_lines", "min_letters", "control_characters"]
    for part in [*settings, "Ã¼", "Copyright ©", "Cyrillic", "Han", "ocr/"]:
        assert part in decide, part
    assert "![" in text and "| U+00AD | soft hyphen |" in text and "copies of earlier documents" in text
    for block in text.split("\n\n"):
        rows = [line for line in block.split("\n") if line.startswith("|")]
        assert len({line.count("|") for line in rows}) <= 1, block  # every row of a table has all its cells


@pytest.mark.parametrize(
    "line", [BOILERPLATE, 'It\'s [1] "so" | `x`  $HOME ${a} \\ 文', "don't  a\tb; rm -rf {x: y}, (z)"]
)
def test_the_suggested_drop_lines_can_be_pasted_into_a_shell(line):
    some = [Document(f"{n}.txt", f"{n}: some text that is by itself\n{line}\n") for n in range(200)]
    text = report(survey(some, BYTE)[0], title="lines")
    (pasted,) = [part for part in text.split("`") if "curate.drop_lines=" in part]
    (word,) = shlex.split(pasted)
    config, _ = cli.compose(PrepareConfig, name="prepare", arguments=[word])
    cleaned, removed = clean(some[0].text, config.curate)
    assert cleaned == "0: some text that is by itself\n" and removed["drop_lines"][0] == 1


def decisions(some: list[Document], **rules) -> str:
    return "\n".join(findings(survey(some, BYTE, config=CurateConfig(**rules))[0]))


def test_findings_say_what_max_mojibake_would_drop_and_suggest_repair_first():
    some = [
        Document(f"{n}.txt", f"{n} " + "word " * 100 + ("Ã¼" if n < 40 else "Ã¼" * 40 * (n < 60))) for n in range(400)
    ]
    summary, kept = survey(some, BYTE, in_val=lambda document: False)
    above = summary["splits"]["train"]["looked_at"]["mojibake"]["above"]
    for share in (0.001, 0.01):
        _, left = survey(some, BYTE, config=CurateConfig(max_mojibake=share), in_val=lambda document: False)
        assert above[str(share)] == len(kept["train"]) - len(left["train"])
    text = decisions(some)
    assert above == {"0.001": 60, "0.01": 20} and "First repair" in text and "worst" not in text
    assert "=0.01` would drop" in text
    assert "First repair" not in decisions(
        [Document(d.name, d.text + "\ufffd" * 9) for d in some], repair_mojibake=True
    )


def test_control_characters_in_mojibake_are_repaired_before_they_are_removed():
    damaged = [Document(f"{n}.txt", f"{n} \u00c3\u009f and a little text") for n in range(200)]
    assert "`curate.repair_mojibake=true curate.control_characters=true`" in decisions(damaged)
    bells = [Document(f"{n}.txt", f"{n} \x07 and a little text") for n in range(200)]
    assert "`curate.control_characters=true` removes them" in decisions(bells)
    assert "control character" not in decisions(damaged, repair_mojibake=True, control_characters=True)


@pytest.mark.parametrize("markup", ["<p>", '<a href="x">', "<br/>", "</DIV>", "&nbsp;", "&#160;"])
def test_html_is_found_and_comparison_signs_are_not(markup):
    some = [
        Document(f"{n}.txt", f"{n} text with p < 0.05 & a <b and c> d {markup * (n % 50 == 0)}") for n in range(500)
    ]
    assert "10 documents** (2.0%) with HTML tags or entities" in "\n".join(
        findings(survey(some, BYTE, in_val=lambda document: False)[0])
    )
    assert "tags or entities" not in decisions([d for d in some if markup not in d.text])


@pytest.mark.parametrize(
    "text, lines", [("---\ntitle: a\n---\n| a |\n|---\nb-\nC\n- \n", 0), ("an ani-\nmal, in dé-\nétail", 2)]
)
def test_only_hyphens_inside_words_divide_words(text, lines):
    summary, _ = survey([Document(f"{n}.txt", f"{text}{n}") for n in range(10)], BYTE, in_val=lambda document: False)
    assert summary["splits"]["train"]["looked_at"]["hyphens"] == 10 * lines


def test_tokens_that_differ_in_white_space_differ_in_the_report():
    summary, _ = survey(documents(60), BYTE)
    longest = [{"text": text, "times": 1} for text in ("---", " ---", "---\n")]
    summary["splits"]["train"]["vocabulary"] |= {"size": 4096, "used": 4000, "under_100": 3000, "longest": longest}
    text = report(summary, title="tokens")
    assert "| `---` |" in text and "| `␣---` |" in text and "| `---↵` |" in text
    assert "Of 4,096 tokens, 3,096 occur fewer than 100 times" in text  # as the finding on the vocabulary says


def test_lines_that_differ_only_in_digits_are_reported_as_identifiers():
    forms = [Document(f"{n}.txt", f"Patient: X, MRN: {1000123 + n}\n{n} Tel. 0800 123456\nfine") for n in range(300)]
    (found,) = [line for line in decisions(forms).split("\n") if "Identifiers?" in line]
    assert "`Patient: X, MRN: #`" in found and "Do they identify people" in found
    born = "born {:02}.{:02}.1961, room {}".format
    assert "`born #.#.#, room #`" in decisions([Document(f"{n}", born(n % 28, n % 12, n)) for n in range(300)])
    always = [Document(f"{n}.txt", f"by itself {n}\nTel. 0800 123456\n1 {10000 + n}") for n in range(300)]
    assert "Identifiers?" not in decisions(always)  # one line again and again, and numbers without words
    parts = [counted(forms[:100]), counted(forms[100:])]
    parts[0].merge(pickle.loads(pickle.dumps(parts[1])))
    whole = counted(forms).to_dict(BYTE)["looked_at"]
    assert parts[0].to_dict(BYTE)["looked_at"]["shapes"] == whole["shapes"] and whole["shapes"][0]["times"] == 300


def test_unmatched_patterns_are_reported():
    some = [Document(f"{n}.txt", f"{n} text\nPatient: {n}\nPage 1\nÃ¼ber") for n in range(20)]
    text = decisions(some, drop_lines=["Patient", "Page ?", "Pag*", "über"], repair_mojibake=True)
    assert "`Patient` matched no line; a pattern must match the whole line: `*Patient*` would" in text
    assert "matched no line" not in decisions(some, drop_lines="Page ?")


def test_quantiles_of_shares_are_in_whole_percent():
    some = [Document(f"{n}.txt", "a" * 93 + "1" * 7 + f" {n * 'b'}") for n in range(1, 3)]
    text = report(survey(some, BYTE, in_val=lambda document: False)[0], title="shares")
    (row,) = [line for line in text.split("\n") if line.startswith("| digits")]
    assert set(row.split("|")[2:-1]) <= {" 7% ", " 8% "}


def test_a_clean_corpus_has_no_findings():
    rng = random.Random(0)
    words = [f"{a}{b}" for a in "ka lo mi ru ten vor zil".split() for b in "bar dus fen gol hip".split()]
    clean = [Document(f"{n}.txt", " ".join(rng.choice(words) for _ in range(60)) + ".\n") for n in range(90)]
    summary, _ = survey(clean, BYTE)
    text = report(summary, title="clean")
    assert "## Findings" not in text and "The rules removed nothing" in text


def test_a_report_of_one_document_and_of_none():
    summary, kept = survey([Document("one", "x")], BYTE, in_val=lambda document: False)
    assert len(kept["train"]) == 1 and "val" not in summary["splits"]
    assert report(summary, title="one").startswith("# one\n")
    empty = summarize({"train": Statistics(BYTE.vocab_size)}, Removals(), BYTE, settings=asdict(CurateConfig()))
    assert report(empty, title="none").startswith("# none\n")


def test_validation_passages_in_training_text_are_reported():
    rng = random.Random(0)
    passages = ["".join(rng.choice("abcdefgh ") for _ in range(600)) for _ in range(60)]
    train = [Document(f"t{n}", f"{n}: {p}\n") for n, p in enumerate(passages)]
    copied = [Document(f"v{n}", f"again {n}: {p}\n") for n, p in enumerate(passages)]
    fresh = [Document(f"v{n}", "".join(rng.choice("abcdefgh ") for _ in range(600))) for n in range(60)]
    for val, noticed in ((copied, True), (fresh, False)):
        summary, _ = survey(train + val, BYTE, in_val=lambda document: document.name[0] == "v")
        assert ("The splits share whole passages" in report(summary, title="leak")) == noticed
        assert (summary["yardsticks"]["val_verbatim"] > 0.3) == noticed


def test_a_shared_template_is_not_reported_as_shared_passages():
    rng = random.Random(0)

    template = ["".join(rng.choice("abcdefgh ") for _ in range(60)) for _ in range(1000)]

    def form(number: int) -> Document:
        lines = [f"{line}: {rng.randrange(1000)}" for line in rng.sample(template, 5)]
        return Document(f"{number % 7 == 0}{number}", "\n".join(lines) + "\n")

    summary, _ = survey(map(form, range(700)), BYTE, in_val=lambda document: document.name.startswith("True"))
    found, text = summary["yardsticks"], report(summary, title="forms")
    assert found["xz_val_after"] < 0.7 * found["xz_val"] and found["val_verbatim"] == 0
    assert "may share passages or templates" in text and "share whole passages" not in text


def test_windows_are_those_of_training():
    from data.batching.batches import WindowBatches
    from data.preparation.shards import Split, Tokens

    split = Split(None, "train", Tokens([np.zeros(10_001, np.uint16)]), n_bytes=1, fingerprint="")
    batches = WindowBatches(split, context=128, batch_size=8, seed=0)
    lengths = [
        {"at_least": 64.0, "documents": 30, "tokens": 2500},
        {"at_least": 128.0, "documents": 10, "tokens": 7500},
    ]
    (part,) = batches.parts
    assert windows(10_001, lengths, 128) == (len(part), 0.25, 0.75)


def test_names_and_lines_cannot_break_the_markdown():
    assert code("a|b`c\nd\x07\u202e") == "`a¦bˋc d\\x07\\u202e`"
    assert code("   ") == "`   `" and len(code("x" * 500)) == 92
