"""Prepares a corpus on its own: documents and a tokenizer to token shards, as train.py does by itself."""

from __future__ import annotations

from conf import cli
from conf.display import data_report, progress
from data.preparation.prepare import PrepareConfig, prepare


def main(cfg: PrepareConfig, overrides: cli.Overrides) -> None:
    print(prepare(cfg, progress=progress.Passes(), show=data_report.show))


if __name__ == "__main__":
    cli.run(main, PrepareConfig, name="prepare")
