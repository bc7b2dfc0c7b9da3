"""scripts.inspect: what it writes holds the figures of the model, in every form, and mistakes are refused."""

from __future__ import annotations

import html.parser
import json
import re

import pytest
import torch

from data.preparation.shards import open_split
from scripts import inspect as program
from tests.programs import ok, one_line, run

PROMPT = "prompt=Listen </script>"


@pytest.fixture(scope="module")
def everything(trained, tmp_path_factory):
    """(json, output, folder) of mode=all on a checkpoint of one layer."""
    folder = tmp_path_factory.mktemp("inside")
    files = [
        f"{name}={folder / f'a.{ending}'}" for name, ending in (("json", "json"), ("html", "html"), ("plot", "png"))
    ]
    shown = ok(
        "inspect", f"checkpoint={trained}", PROMPT, f"datasets={trained.parent / 'datasets'}", *files, "windows=4"
    )
    return json.loads((folder / "a.json").read_text(encoding="utf-8")), shown, folder


def test_every_part_agrees_with_the_model(everything, trained):
    found, shown, _ = everything
    lm = program.load(program.InspectConfig(checkpoint=str(trained)))
    assert [token["id"] for token in found["tokens"]] == lm.encode("Listen </script>")
    attention = torch.tensor(found["attention"])
    assert attention.shape == (1, 2, 16, 16)
    torch.testing.assert_close(attention.sum(-1), torch.ones(1, 2, 16), atol=1e-3, rtol=0)
    own = lm.next_tokens("Listen </script>", top=5)
    last = found["lens"]["layers"][-1][-1]["tokens"]
    assert [token["id"] for token in last] == [token.id for token in own]
    assert [token["probability"] for token in last] == pytest.approx([token.probability for token in own], rel=1e-4)
    assert found["trace"]["flops"] == found["trace"]["planned_flops"] > 0
    assert len(found["heads"]["rows"]) == 2 and found["heads"]["windows"] == 4 and len(found["heads"]["layers"]) == 1
    for text in ("Forward pass", "blocks.0.attention.qkv", "Logit lens", "Attention heads", "previous token"):
        assert text in shown


def test_the_page_is_one_file_that_loads_nothing_and_holds_the_result(everything):
    found, _, folder = everything
    page = (folder / "a.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page and "innerHTML" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:,)|https?:|@import|fetch\(", page.split('id="data">')[0])
    assert not re.search(r"https?:|import\(|fetch\(", page.rsplit("</script>", 2)[1])

    class Scripts(html.parser.HTMLParser):
        inside, parts = False, []

        def handle_starttag(self, tag, attrs):
            self.inside = tag == "script" and dict(attrs).get("id") == "data"

        def handle_data(self, data):
            if self.inside:
                self.parts.append(data)
                self.inside = False

    parser = Scripts()
    parser.feed(page)
    assert json.loads(parser.parts[0]) == found and found["prompt"] == "Listen </script>"
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_head_a_layer_and_a_position_can_be_chosen(trained, tmp_path):
    common = (f"checkpoint={trained}", "prompt=Listen")
    shown = ok("inspect", *common, "mode=attention", "layer=0", "head=1", f"plot={tmp_path / 'head.svg'}")
    assert "Layer 0, head 1" in shown and (tmp_path / "head.svg").read_text().startswith("<?xml")
    assert shown.splitlines()[2].split()[1:] == ["'L'", "100"]
    assert "of token 2, 's'" in ok("inspect", *common, "mode=attention", "position=2")
    assert "after 'Li'" in ok("inspect", *common, "mode=lens", "position=1")
    for wrong in (("layer=1",), ("head=2", "layer=0"), ("position=6",)):
        assert f"{wrong[0]} must be between 0 and" in one_line(run("inspect", *common, *wrong))


def test_heads_without_the_corpus_have_scores_but_no_loss(trained, tmp_path):
    shown = ok("inspect", f"checkpoint={trained}", "mode=heads", f"datasets={tmp_path}")
    assert "note: the loss without each head is not measured" in shown and "95 % interval" not in shown
    shown = ok("inspect", f"checkpoint={trained}", "mode=heads", "text=Listen to your heart", "windows=1")
    assert "tokens in a window" in shown
    given = ok("inspect", f"checkpoint={trained}", "mode=heads", "text=Listen to your heart", "ablation=zero")
    assert "replaced by zero" in given and "95 % interval" in given


def test_copied_text_is_found_with_its_document(trained, tmp_path):
    corpus = next((trained.parent / "datasets").glob("*/index.json")).parent
    lm = program.load(program.InspectConfig(checkpoint=str(trained)))
    ids = open_split(corpus, "train").tokens[1:200].tolist()
    verse = lm.tokenizer.decode(ids[50:110])
    common = (f"checkpoint={trained}", "mode=copies", f"datasets={trained.parent / 'datasets'}")
    files = [
        f"{name}={tmp_path / f'a.{ending}'}" for name, ending in (("json", "json"), ("html", "html"), ("plot", "png"))
    ]
    shown = ok("inspect", *common, f"text={verse}", *files)
    found = json.loads((tmp_path / "a.json").read_text())["copies"]
    [text] = found["texts"]
    assert text["longest"] == 60 and text["spans"][0]["text"] == verse and text["spans"][0]["sources"]
    assert "poem.txt" in shown and "held-out human text" in shown and found["statistics"]["covered"]["share"] == 1
    sampled = ok(
        "inspect", *common, "num_samples=2", "max_new_tokens=12", "min_tokens=1", f"json={tmp_path / 'b.json'}"
    )
    found = json.loads((tmp_path / "b.json").read_text())["copies"]
    assert found["statistics"]["tokens"] == found["human"]["tokens"] > 0 and "Copied from" in sampled


def test_a_model_with_a_start_token_reads_it_before_the_text(trained, monkeypatch):
    cfg = program.InspectConfig(checkpoint=str(trained), mode="heads", text="Listen to your heart", windows=1)
    lm, seen = program.load(cfg), []
    monkeypatch.setattr(lm.tokenizer, "start_id", 5)
    monkeypatch.setattr(program, "head_scores", lambda model, *, start, **_: seen.append(start) or 1 / 0)
    assert program.ablation_windows(cfg, lm)[0, 0] == 5
    with pytest.raises(ZeroDivisionError):
        program.look_at_heads(cfg, lm, [])
    assert seen == [5]


def test_mistakes_are_refused_in_one_line(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, part in (
        (("prompt=a",), "checkpoint is required"),
        ((f"checkpoint={trained}",), "prompt is required"),
        ((f"checkpoint={trained}", "mode=everything"), "mode='everything' is not one of"),
        ((f"checkpoint={trained}", "prompt=a", "ablation=half"), "ablation='half'"),
        ((f"checkpoint={trained}", f"prompt={'a' * 99}", "mode=trace"), "99 tokens; at most 32"),
        ((f"checkpoint={trained}", "mode=copies"), "does not contain the prepared corpus"),
        ((f"checkpoint={trained}", "mode=heads", "text="), "text= is empty"),
        ((f"checkpoint={trained}", "mode=heads", "text=a", "text_file=b"), "not both"),
        ((f"checkpoint={trained}", "mode=trace", "prompt=a", "plot=a.png"), "mode=trace has no plot"),
        ((f"checkpoint={trained}", "mode=copies", "min_tokens=0"), "min_tokens=0 must be"),
        ((f"checkpoint={trained}", "mode=heads", "windows=1001"), "windows=1001 must be between 1 and 1,000"),
    ):
        assert part in one_line(run("inspect", *arguments)), arguments
    assert list(tmp_path.iterdir()) == []
