"""import_model.py and export.py: models go out and come back with the same bits, or nothing is published."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors import SafetensorError

from data.exchange import tasks
from data.exchange.byte_level.patterns import CUTS
from data.labelled.templates import CHAT_TEMPLATES, Task
from data.tokenizers.build import TokenizerConfig, build
from model.checkpoints import reader
from model.checkpoints.writer import Peers, Snapshot, write
from model.exchange import huggingface, proof
from sample import load
from tests.conftest import POEM
from tests.families import make
from tests.programs import ok, one_line, run, snapshot

TEXT = [POEM, "def f(x):\n\treturn x ** 2  # 12,345 naïve café 我能 👍\n  1   2\n"] * 3
PLAIN = TokenizerConfig(vocab_size=300)
CHAT = TokenizerConfig(vocab_size=300, special_tokens=["<|im_start|>", "<|im_end|>"], allow_special=True)


@pytest.fixture(autouse=True)
def short_proof(monkeypatch, tmp_path):
    """The same proof on fewer texts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, "TEXT_BYTES", 3_000)
    monkeypatch.setattr(tasks, "N_STRINGS", 100)
    monkeypatch.setattr(proof, "N_GREEDY", 20)


def make_run(folder, family, config=PLAIN, *, chat=None, **changes):
    """A run directory of one step with random weights and a small tokenizer."""
    tokenizer = build(config, TEXT)
    model = make(family, vocab_size=tokenizer.vocab_size, **changes)
    weights = dict(sorted(model.state_dict().items()))
    for name in ("embed.weight", "lm_head.weight"):
        if name in weights:
            weights[name][tokenizer.vocab_size :] = 0  # the padding, as in training
    files = [lambda step: tokenizer.save(step / "tokenizer"), *([Task(chat=chat).save] if chat else [])]
    manifest = {"tokens": 0, "tokenizer_fingerprint": tokenizer.fingerprint, "val_bits_per_byte": 1.25}
    new = Snapshot(7, model.config, {"model.safetensors": weights}, {}, None, manifest, files)
    folder.mkdir(parents=True)
    write(folder, new, best=True, keep_last=1, peers=Peers())
    return folder


def equal_runs(a, b):
    """True if two run directories hold the same shape, bits and tokens."""
    first, second = reader.find(a), reader.find(b)
    ours, theirs = first.weights(), second.weights()
    assert first.config == second.config and {*ours} == {*theirs}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    text = "".join(TEXT) + "3 000 it's <|im_start|> \x00\u2003"
    return load(a).tokenizer.encode(text) == load(b).tokenizer.encode(text)


PORTABLE = {"norm_affine": True, "qk_norm": False, "embedding_norm": False}


@pytest.mark.parametrize(
    "family, changes, name",
    [
        ("gpt2", {}, "GPT2LMHeadModel"),
        ("llama", {"rotary_scaling": [8.0, 1.0, 4.0, 16.0]}, "LlamaForCausalLM"),
        ("modern", {}, "NanoChatForCausalLM"),
        ("modern", PORTABLE, "ArceeForCausalLM"),
    ],
)
def test_to_transformers_and_back_the_bits_are_the_same(tmp_path, family, changes, name):
    make_run(tmp_path / "run", family, **changes)
    out = ok("export", "checkpoint=run", "out=there")
    assert f"there ({name})" in out and "0 differ" in out and "20 tokens, identical" in out
    card = (tmp_path / "there" / "README.md").read_text()
    assert name in card and "1.2500" in card and "0 differ" in card
    out = ok("import_model", "source=there", "run_dir=back")
    assert "0 differ" in out and "mode=next_word" in out
    assert equal_runs(tmp_path / "run", tmp_path / "back")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "there", "back"}


@pytest.mark.parametrize(
    "tokenizer", [TokenizerConfig(kind="byte"), TokenizerConfig(vocab_size=300, pattern=r"\w+|\W")]
)
def test_a_tokenizer_whose_expression_is_not_a_known_one_is_exported(tmp_path, tokenizer):
    make_run(tmp_path / "run", "llama", tokenizer)
    out = ok("export", "checkpoint=run", "out=there")
    assert "the same ids" in out and "DIFFERENT" not in out


@pytest.mark.parametrize(
    "family, changes, known",
    [
        ("llama", {"tie_embeddings": False}, True),
        ("llama", {"rotary_scaling": [2.0]}, False),
        ("llama", {"bias": True}, False),
        ("gpt2", {}, False),
        ("modern", PORTABLE, False),
    ],
)
def test_to_gguf_and_back_the_bits_are_the_same(tmp_path, family, changes, known):
    """known: transformers computes the same from such a GGUF file; otherwise it is not asked."""
    pytest.importorskip("gguf")
    make_run(tmp_path / "run", family, **changes)
    out = ok("export", "checkpoint=run", "format=gguf", "out=model.gguf")
    assert "the same bits" in out
    out = ok("import_model", "source=model.gguf", "run_dir=back")
    assert ("note: not compared" in out) is not known
    assert equal_runs(tmp_path / "run", tmp_path / "back")


def test_digits_are_cut_out_first_in_a_gguf_file(tmp_path):
    """As in SmolLM2's tokenizer: with the cut of GPT-2, "  1" is a space and then " 1"."""
    pytest.importorskip("gguf")
    make_run(tmp_path / "run", "llama", TokenizerConfig(vocab_size=300, pattern=CUTS["smollm"].expression))
    assert "  " in map(load(tmp_path / "run").tokenizer.decode, [[token] for token in range(256, 300)])
    assert "DIFFERENT" not in ok("export", "checkpoint=run", "format=gguf", "out=model.gguf")


def test_rounded_weights_are_read_again_and_their_loss_is_said(tmp_path):
    pytest.importorskip("gguf")
    make_run(tmp_path / "run", "llama")
    for kind in ("F16", "Q8_0"):
        out = ok("export", "checkpoint=run", "format=gguf", f"out={kind}.gguf", f"type={kind}")
        assert f"rounded to {kind}, logits differ by" in out
    assert (tmp_path / "Q8_0.gguf").stat().st_size < (tmp_path / "F16.gguf").stat().st_size


def test_a_chat_template_goes_along(tmp_path):
    transformers = pytest.importorskip("transformers")
    make_run(tmp_path / "run", "modern", CHAT, chat=CHAT_TEMPLATES["chatml"])
    ok("export", "checkpoint=run", "out=there")
    settings = json.loads((tmp_path / "there" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == load(tmp_path / "run").tokenizer.special_tokens["<|im_end|>"]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "there")
    said = [{"role": "user", "content": "Hello"}]
    rendered = theirs.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    out = ok("import_model", "source=there", "run_dir=back")
    assert "mode=chat" in out
    found = Task.load(reader.find(tmp_path / "back").directory)
    assert found is not None and found.chat == CHAT_TEMPLATES["chatml"]


def test_an_import_is_an_ordinary_run_without_training_state(tmp_path):
    make_run(tmp_path / "run", "modern")
    ok("export", "checkpoint=run", "out=there", "proof=false")
    ok("import_model", "source=there", "run_dir=back", "proof=false")
    assert ok("sample", "checkpoint=back", "prompt=Listen", "max_new_tokens=3", "device=cpu").startswith("Listen")
    (tmp_path / "labels.csv").write_text(
        "text,label\n" + "".join(f"to your heart {n},good\nto nobody {n},bad\n" for n in range(20))
    )
    tuned = ("finetune", "checkpoint=back", "examples=labels.csv", "run_dir=tuned", "steps=1", "batch_size=2")
    ok(*tuned, "device=cpu")
    assert reader.find(tmp_path / "tuned").manifest["source"] == "there"
    line = one_line(run("train", "run_dir=back", "resume=true", "corpus=x"))
    assert "back" in line and "config.yaml is missing" in line


@pytest.mark.parametrize("fault", ["weights", "tokenizer"])
def test_a_wrong_export_is_not_published(tmp_path, monkeypatch, fault):
    pytest.importorskip("transformers")
    make_run(tmp_path / "run", "llama")
    original = huggingface.write_model

    def wrong(folder, config, weights, *, ids):
        values = {name: weights[name].clone() for name in weights}
        if fault == "weights":
            values["blocks.1.attention.qkv.weight"][:2] = values["blocks.1.attention.qkv.weight"][:2].flip(0)
        return original(folder, config, values, ids=ids)

    monkeypatch.setattr(huggingface, "write_model", wrong)
    if fault == "tokenizer":
        import scripts.export as program

        def spoiled(folder, *args, write=program.to_huggingface, **options):
            write(folder, *args, **options)
            path = folder / "tokenizer.json"
            content = json.loads(path.read_text())
            content["model"]["merges"].reverse()
            path.write_text(json.dumps(content))

        monkeypatch.setattr(program, "to_huggingface", spoiled)
    before = snapshot(tmp_path)
    ended = run("export", "checkpoint=run", "out=there")
    assert ended.status == 2 and len(ended.err.splitlines()) == 1, ended.err
    assert snapshot(tmp_path) == before


def test_an_export_with_other_settings_is_not_published(tmp_path, monkeypatch):
    make_run(tmp_path / "run", "llama")
    original = huggingface.write_config
    changed = lambda *args, **options: original(*args, **options) | {"rms_norm_eps": 0.01}  # noqa: E731
    monkeypatch.setattr(huggingface, "write_config", changed)
    assert "logits differ" in one_line(run("export", "checkpoint=run", "out=there"))
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_what_a_format_does_not_know_is_refused_with_what_would_work(tmp_path, refused):
    make_run(tmp_path / "run", "modern")
    refused("export", "checkpoint=run", "format=gguf", "out=x.gguf", parts=("model=portable", "format=hf"))
    make_run(tmp_path / "char", "modern", TokenizerConfig(kind="char"), n_layer=1)
    refused("export", "checkpoint=char", "format=gguf", "out=x.gguf", parts=("char",))
    refused("export", "checkpoint=run", "out=run", parts=("run exists already",))
    refused("export", "checkpoint=run", "format=gguf", "out=x", parts=("ends in .gguf",))
    refused("export", "checkpoint=run", "out=x.gguf", parts=("x.gguf", "format=gguf"))
    refused("export", "checkpoint=run", "format=onnx", "out=x", parts=("'onnx'", "hf, gguf"))
    refused("export", "out=x", parts=("checkpoint is required",))


def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    writer = pytest.importorskip("gguf.gguf_writer")
    make_run(tmp_path / "run", "llama")
    ok("export", "checkpoint=run", "out=there", "proof=false")

    def full(error):
        def write(*args, **options):
            raise error

        return write

    no_space = full(SafetensorError("I/O error: No space left on device (os error 28)"))
    monkeypatch.setattr(huggingface, "save_file", no_space)
    monkeypatch.setattr("model.checkpoints.writer.save_file", no_space)
    monkeypatch.setattr(writer.GGUFWriter, "write_tensor_data", full(OSError("940 requested and 516 written")))
    before = snapshot(tmp_path)
    assert "No space left" in one_line(run("export", "checkpoint=run", "out=other", "proof=false"))
    assert "No space left" in one_line(run("import_model", "source=there", "run_dir=back", "proof=false"))
    assert "516 written" in one_line(run("export", "checkpoint=run", "format=gguf", "out=x.gguf", "proof=false"))
    assert snapshot(tmp_path) == before


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_sources_that_cannot_be_read_are_refused_and_leave_nothing(tmp_path, refused):
    (tmp_path / "ckpt.pt").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 40)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    refused("import_model", "source=ckpt.pt", "run_dir=out", parts=("pickle", "nanogpt"))
    refused("import_model", "source=empty", "run_dir=out", parts=("config.json",))
    refused("import_model", "source=x.gguf", "run_dir=out", parts=("x.gguf",))
    refused("import_model", "source=missing", "run_dir=out", parts=("missing", "smollm2"))
    refused("import_model", "source=empty", "run_dir=full", parts=("full exists already",))
    refused("import_model", "run_dir=out", parts=("source is required",))
    refused("import_model", "source=empty", parts=("run_dir is required",))
    make_run(tmp_path / "run", "llama")
    refused("import_model", "source=run", "run_dir=out", parts=("is a run directory already",))


def test_a_model_in_another_format_is_no_checkpoint_and_the_way_is_said(tmp_path, refused):
    make_run(tmp_path / "run", "llama")
    ok("export", "checkpoint=run", "out=there", "proof=false")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for name in ("there", "model.gguf"):
        refused("sample", f"checkpoint={name}", "prompt=x", parts=(f"scripts.import_model source={name}",))


def test_remote_code_and_pickled_weights_are_refused(tmp_path, refused):
    make_run(tmp_path / "run", "llama")
    ok("export", "checkpoint=run", "out=there", "proof=false")
    config = tmp_path / "there" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    refused("import_model", "source=there", "run_dir=out", parts=("config.json: auto_map",))
    config.write_text(json.dumps(values))
    settings = tmp_path / "there" / "tokenizer_config.json"
    settings.write_text(
        json.dumps(json.loads(settings.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.T", None]}})
    )
    refused("import_model", "source=there", "run_dir=out", parts=("tokenizer_config.json", "auto_map"))
    (tmp_path / "there" / "model.safetensors").unlink()
    (tmp_path / "there" / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused("import_model", "source=there", "run_dir=out", parts=("pickled",))


def test_embeddings_beyond_the_tokenizer_become_unused_ids(tmp_path):
    pytest.importorskip("transformers")
    make_run(tmp_path / "run", "llama")
    ok("export", "checkpoint=run", "out=there", "proof=false")
    model = make("llama", vocab_size=320)
    ids = huggingface.SpecialIds(end_id=299)
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (tmp_path / "there" / name).unlink()
    huggingface.write_model(tmp_path / "there", model.config, model.state_dict(), ids=ids)
    out = ok("import_model", "source=there", "run_dir=back")
    lm = load(tmp_path / "back")
    assert "unused ids" in "".join(out) and lm.tokenizer.vocab_size == 320
    assert lm.tokenizer.encode(POEM) == load(tmp_path / "run").tokenizer.encode(POEM)
