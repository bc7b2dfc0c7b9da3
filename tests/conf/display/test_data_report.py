"""Data report: the plot is complete for any corpus; the table fits a terminal and lists the effect of curation."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from conf.display.data_report import _short, plot_report, report_table
from data.corpus.corpora import Document
from data.curation.curate import CurateConfig
from data.tokenizers import build as tokenizers
from data.tokenizers.build import TokenizerConfig
from tests.messy import documents
from tests.survey import survey

BYTE = tokenizers.build(TokenizerConfig(kind="byte"), [])
CASES = {
    "messy": (documents(150), CurateConfig(near_duplicates=True, min_letters=0.5, repair_mojibake=True)),
    "one": ([Document("文", "患")], CurateConfig()),
    "nothing": ([Document("1", "1 2 3")], CurateConfig()),
}


@pytest.mark.parametrize("name", CASES)
def test_the_plot_is_complete_without_warnings(tmp_path: Path, name: str) -> None:
    summary, _ = survey(CASES[name][0], BYTE, config=CASES[name][1], in_val=lambda document: document.name[-1] == "9")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_report(summary, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 1


def test_the_table_fits_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    summary, _ = survey(*CASES["messy"][:1], BYTE, config=CASES["messy"][1])
    report_table(summary)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for entry in summary["curation"].values():
        (row,) = [line for line in lines if line.startswith(entry["what"])]
        assert f"{entry['documents']:,}" in row and f"{entry['bytes']:,}" in row


def test_numbers_on_an_axis_are_short() -> None:
    assert [_short(value) for value in (1, 512, 1024, 65536, 1000, 2_500_000, 3e9)] == [
        "1", "512", "1k", "64k", "1k", "2.5M", "3G"
    ]  # fmt: skip
