"""Prepares a corpus without training: documents and a tokenizer become token shards, as in train.py."""

from __future__ import annotations

from conf import cli
from conf.display import data_report, progress
from data.preparation.config import PrepareConfig
from data.preparation.prepare import prepare


def main(cfg: PrepareConfig, overrides: cli.Overrides) -> None:
    print(prepare(cfg, progress=progress.Passes(), show=data_report.show))


if __name__ == "__main__":
    cli.run(main, PrepareConfig, name="prepare")
