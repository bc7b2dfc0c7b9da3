"""Stop strings, bad words and forced words hold for the text's bytes, however it is tokenized."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from model import InputError
from model.inference import generate as generate_module
from model.inference.constraints import Constraints, StringMatcher, TextStream
from model.inference.sampling import SamplingConfig
from model.inference.vocabulary import Vocabulary
from tests.families import make
from tests.model.inference.helpers import byte_model, new_tokens

RANDOM = random.Random(0)


def vocabulary(*words: str | bytes) -> Vocabulary:
    """These tokens and the end token."""
    words = [word.encode() if isinstance(word, str) else word for word in words]
    return Vocabulary((*words, b""), {len(words): "<|end|>"}, end_id=len(words))


def streamed(pieces: list[bytes], stops: list[str], *, least: int = 0) -> tuple[list[str], bool]:
    """The text after each piece, and True if a stop string ended it."""
    text = TextStream(StringMatcher([(stop, 1) for stop in stops]))
    out = []
    for number, piece in enumerate(pieces):
        out.append(text.add(piece, may_stop=number >= least))
        if text.stopped:
            return out, True
    return [*out, text.end(complete=True)], False


def cut(text: str, stops: list[str]) -> str:
    """The text before the first complete stop string, the longest if several are; the slow reference."""
    data = text.encode()
    for end in range(len(data) + 1):
        found = [stop.encode() for stop in stops if data[:end].endswith(stop.encode())]
        if found:
            return data[: end - max(map(len, found))].decode()
    return text


def pieces_of(data: bytes) -> list[bytes]:
    borders = sorted({0, len(data), *(RANDOM.randrange(len(data) + 1) for _ in range(RANDOM.randrange(12)))})
    return [data[a:b] for a, b in itertools.pairwise(borders)]


@pytest.mark.parametrize(
    "pieces, stops, expected",
    [
        ([b"x", b"A", b"A", b"B", b"y"], ["AB"], "xA"),  # it overlaps its own beginning
        ([b"xAA", b"By"], ["AB"], "xA"),
        ([b"a\n", b"\n", b"\nb"], ["\n\n\n"], "a"),
        ([b"ababa", b"c"], ["abac"], "ab"),
        (["zé".encode()[:2], "zé".encode()[2:] + b"!"], ["é"], "z"),  # in the middle of a character
        (["🦓".encode()[:1], "🦓".encode()[1:3], "🦓".encode()[3:]], ["🦓"], ""),
        (["a🦓".encode()[:3], "a🦊".encode()[3:]], ["🦓"], "a🦊"),  # the first three bytes are the same
        ([b"xyz"], ["z", "yz"], "x"),
        ([b"abcd"], ["abcde", "c"], "ab"),
        ([b"never"], ["stop"], "never"),
        ([b"all of it"], ["all of it"], ""),
    ],
)
def test_text_ends_before_a_stop_string(pieces, stops, expected):
    out, stopped = streamed(pieces, stops)
    assert "".join(out) == expected and stopped == (expected != b"".join(pieces).decode())


def test_stop_strings_are_found_in_any_text_cut_anywhere():
    for _ in range(3000):
        text = "".join(RANDOM.choices("aabé🦓", k=RANDOM.randrange(14)))
        stops = ["".join(RANDOM.choices("aabé🦓", k=RANDOM.randrange(1, 4))) for _ in range(RANDOM.randrange(1, 4))]
        out, stopped = streamed(pieces_of(text.encode()), stops)
        assert "".join(out) == cut(text, stops) and stopped == any(stop in text for stop in stops)
        assert "\ufffd" not in "".join(out)


def test_text_is_held_back_only_while_it_may_start_a_stop_string():
    out, stopped = streamed([b"one s", b"to", b"ne st", b"op two"], ["stop"])
    assert (out, stopped) == (["one ", "", "stone ", ""], True)
    out, _ = streamed([b"s", b"t", b"o", b"r", b"y"], ["stop"])
    assert out == ["", "", "", "stor", "y", ""]
    assert streamed([b"st"], ["stop"]) == (["", "st"], False)


def test_before_min_new_tokens_a_stop_string_is_text():
    assert streamed([b"ab", b"ab", b"ab"], ["ab"], least=2) == (["", "ab", "ab"], True)
    assert "".join(streamed([b"a", b"bab"], ["ba"], least=1)[0]) == "a"  # it began before, and ends after


def test_characters_come_whole_and_only_invalid_bytes_are_replaced():
    pieces = [bytes([byte]) for byte in "a🦓é".encode()]
    assert streamed(pieces, [])[0] == ["a", "", "", "", "🦓", "", "é", ""]
    assert "".join(streamed([b"a\xff", b"b\xf0\x9f", b"c"], [])[0]) == "a\ufffdb\ufffdc"
    text = TextStream(StringMatcher([]))
    assert text.add("🦓".encode()[:3]) + text.end(complete=False) == ""  # cut in half by max_new_tokens
    assert text.add(b"") + text.end(complete=True) == "\ufffd"  # the model ended there


# Text from a model


class Script:
    """Replaces Decoder: makes every row write these tokens."""

    compiled = False

    def __init__(self, ids, size):
        self.ids, self.size, self.made = ids, size, 0

    def __call__(self, model, *, rows, capacity, compute):
        self.model, self.rows = model, rows
        return self

    def prefill(self, prompts):
        return self.step(None)

    def step(self, ids):
        logits = torch.zeros(self.rows, self.size)
        logits[:, self.ids[min(self.made, len(self.ids) - 1)]] = 50.0
        self.made += 1
        return logits


def scripted(monkeypatch, data: list[bytes], *, length: int = 20, **settings):
    """The text after each token of a model that writes these pieces, and why it ended."""
    words = vocabulary(*data)
    monkeypatch.setattr(generate_module, "Decoder", Script(range(len(data) + 1), len(data) + 1))
    options = {"max_new_tokens": length, "vocabulary": words, "sampling": SamplingConfig(**settings)}
    [row] = new_tokens(make("modern"), [[0]], **options)
    return [new.text for new in row], row[-1].ended


def test_generation_ends_with_its_stop_string(monkeypatch):
    assert scripted(monkeypatch, [b"x", b"A", b"A", b"By"], stop=("AB",)) == (["x", "", "A", ""], "stop")
    assert scripted(monkeypatch, [b"x", b"A"], stop=("AB",)) == (["x", "", "A"], "end")
    assert scripted(monkeypatch, [b"\xf0\x9f", b"\xa6\x93", b"!"]) == (["", "🦓", "!", ""], "end")
    half = [b"a", b"\xf0\x9f"]  # of a character: cut by max_new_tokens, or the model's own
    assert scripted(monkeypatch, half, length=2) == (["a", ""], "length")
    assert scripted(monkeypatch, half) == (["a", "", "\ufffd"], "end")
    texts, ended = scripted(monkeypatch, [b"a", b".", b"b", b"."], stop=(".",), min_new_tokens=2)
    assert ("".join(texts), ended) == ("a.b", "stop")


def test_a_special_token_inside_a_text_becomes_its_name(monkeypatch):
    words = Vocabulary((b"a", b"", b""), {1: "<|note|>", 2: "<|end|>"}, end_id=2)
    for stop, expected in (((), "a<|note|>a"), (("<|note|>",), "a")):
        monkeypatch.setattr(generate_module, "Decoder", Script([0, 1, 0, 2], 3))
        sampling = SamplingConfig(stop=stop)
        [row] = new_tokens(make("modern"), [[0]], max_new_tokens=9, vocabulary=words, sampling=sampling)
        assert "".join(new.text for new in row) == expected


@pytest.mark.parametrize("family", ["modern", "gpt2"])
def test_streamed_random_text_has_no_half_characters(family):
    lm = byte_model(family, n_layer=1)
    for seed in range(5):
        sampling = SamplingConfig(force_words=("🦓", "é"), temperature=2.0)
        [whole] = lm.generate("a", max_new_tokens=40, sampling=sampling, seed=seed)
        pieces = list(lm.stream("a", max_new_tokens=40, sampling=sampling, seed=seed))
        assert "".join(pieces) == whole.text and "🦓" in whole.text and "é" in whole.text
        assert all(pieces)


def test_bad_words_never_appear():
    words = vocabulary("a", "b", "ab", "ba", "bab", "c", "é".encode()[:1], "é".encode()[1:])
    model = make("modern", vocab_size=9)
    banned = ("abba", "cc", "bb", "é")
    sampling = SamplingConfig(bad_words=banned, min_new_tokens=40)
    seen = ""
    for row in new_tokens(model, [[0], [1]] * 30, max_new_tokens=40, vocabulary=words, sampling=sampling):
        text = b"".join(words.text(new.id) for new in row)
        assert not any(string.encode() in text for string in banned)
        seen += text.decode("utf-8", "replace")
    assert all(string in seen for string in ("a", "b", "c", "aba"))  # nothing else was lost


def test_a_token_is_excluded_exactly_when_it_would_complete_a_bad_word():
    for _ in range(300):
        words = vocabulary(*{"".join(RANDOM.choices("abé", k=RANDOM.randrange(1, 5))) for _ in range(12)}, "", b"\xc3")
        banned = tuple({"".join(RANDOM.choices("abé", k=RANDOM.randrange(1, 5))) for _ in range(3)})
        constraints = Constraints(words, SamplingConfig(bad_words=banned), max_new_tokens=9)
        state, text = constraints.start, b""
        for made in range(8):
            try:
                allowed = constraints.allowed(state, made, max_new_tokens=9).tolist()
            except InputError:
                break
            for token, whether in enumerate(allowed):
                assert whether == (not any(b.encode() in text + words.text(token) for b in banned))
            token = RANDOM.choice([token for token, whether in enumerate(allowed) if whether])
            state, text = constraints.advance(state, token), text + words.text(token)


def test_forced_words_appear_and_the_end_waits_for_them():
    lm = byte_model("gpt2", n_layer=1)
    for seed, forced in enumerate([("heart",), ("heart", "art of"), ("🦓", "z")] * 4):
        sampling = SamplingConfig(temperature=1.5, force_words=forced, stop=("\n",), bad_words=("e ",))
        for made in lm.generate(["a", "", "b"], max_new_tokens=[60, 14, 20], sampling=sampling, seed=seed):
            assert all(string in made.text for string in forced), (made.text, made.ended)
            assert "e " not in made.text and "\n" not in made.text


def test_tokens_needed_is_the_minimum_over_all_tokenizations():
    words = vocabulary("h", "e", "a", "r", "t", "he", "art", "hear", "ear")
    constraints = Constraints(words, SamplingConfig(force_words=("heart",)), max_new_tokens=5)
    assert constraints.needed[1, 0] == 2  # he-art, hear-t
    node, missing = constraints.advance(constraints.start, 7)  # after hear
    assert constraints.needed[missing, node] == 1 and constraints.advance((node, missing), 4)[1] == 0
    two = Constraints(words, SamplingConfig(force_words=("heart", "the")), max_new_tokens=9)
    assert two.needed[3, 0] == 3  # he-art-he: they share the t


def test_tokens_needed_equals_a_search_through_all_texts():
    for _ in range(60):
        words = vocabulary(*{"".join(RANDOM.choices("ab", k=RANDOM.randrange(1, 4))) for _ in range(4)})
        forced, banned, stop = (
            tuple("".join(RANDOM.choices("ab", k=RANDOM.randrange(low, 4))) for _ in range(n))
            for n, low in ((RANDOM.randrange(1, 3), 1), (RANDOM.randrange(2), 2), (RANDOM.randrange(2), 3))
        )
        texts, length = {""}, 0
        while not any(all(string in text for string in forced) for text in texts) and length < 6:
            longer = {text + words.text(token).decode() for text in texts for token in range(len(words.tokens) - 1)}
            texts = {text for text in longer if not any(string in text for string in (*banned, *stop))}
            length += 1
        try:
            sampling = SamplingConfig(force_words=forced, bad_words=banned, stop=stop)
            constraints = Constraints(words, sampling, max_new_tokens=99)
        except InputError as error:
            assert "overlaps" in str(error) or length == 6 or not texts
        else:
            assert constraints.needed[-1, 0] == length or length == 6


@pytest.mark.parametrize("left", range(2, 7))
def test_forced_words_come_at_the_last_moment_if_not_before(left):
    words = vocabulary("h", "e", "a", "r", "t", "he", "art", "x")
    constraints = Constraints(words, SamplingConfig(force_words=("heart",)), max_new_tokens=left)
    allowed = constraints.allowed(constraints.start, 0, max_new_tokens=left)
    assert not allowed[words.end_id]
    assert allowed[5]  # he-art
    assert allowed[0] == (left >= 3)  # h-e-art
    assert allowed[7] == (left >= 3)  # x-he-art
    later, art = constraints.advance(constraints.start, 5), 6
    assert constraints.allowed(later, 1, max_new_tokens=2).nonzero().flatten().tolist() == [art]
    assert constraints.allowed(constraints.advance(later, art), 2, max_new_tokens=3)[words.end_id]


def test_a_token_without_text_only_uses_up_a_token():
    words = Vocabulary((b"a", b"b", b"", b""), {3: "<|end|>"}, end_id=3)
    constraints = Constraints(words, SamplingConfig(force_words=("ab",)), max_new_tokens=3)
    state = constraints.advance(constraints.start, 0)
    assert constraints.allowed(state, 1, max_new_tokens=3).tolist() == [True, True, True, False]
    assert constraints.allowed(state, 1, max_new_tokens=2).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    "settings",
    [
        {"force_words": ("ab",), "stop": ("x",)},
        {"force_words": ("ab",), "bad_words": ("x",)},
        {"force_words": ("end",)},
    ],
)
def test_a_word_that_only_excluded_tokens_spell_cannot_be_forced(settings):
    with pytest.raises(InputError, match="no tokens spell it"):
        Constraints(vocabulary("xab", "a", "c"), SamplingConfig(**settings), max_new_tokens=9)


def test_long_strings_are_handled():
    constraints = Constraints(vocabulary("a", "b"), SamplingConfig(bad_words=("a" * 3000,)), max_new_tokens=9)
    state = (2999, 0)
    assert constraints.allowed(state, 0, max_new_tokens=9).tolist() == [False, True, True]


def test_forced_words_may_need_a_token_between_them():
    words = vocabulary("a", "b", "x")
    constraints = Constraints(words, SamplingConfig(force_words=("aa", "bb"), bad_words=("ab", "ba")), max_new_tokens=5)
    assert constraints.needed[3, 0] == 5  # aaxbb
    seen = set()
    for seed in range(20):
        options = {"max_new_tokens": 5, "sampling": constraints.sampling, "vocabulary": words, "seed": seed}
        [row] = new_tokens(make("modern", vocab_size=4), [[0]], **options)
        seen.add(b"".join(words.text(new.id) for new in row))
    assert seen == {b"aaxbb", b"bbxaa"}


@pytest.mark.parametrize(
    "settings, parts",
    [
        ({"bad_words": ("a", "b", "c"), "min_new_tokens": 1}, ("bad_words=", "no token")),
        ({"force_words": ("abcabc",)}, ("force_words=['abcabc']", "needs 6 tokens", "max_new_tokens=4")),
        ({"force_words": ("abc", "bca")}, None),  # abca
        ({"force_words": ("abc", "cab", "bab")}, ("needs 6 tokens", "max_new_tokens=4")),  # babcab
        ({"force_words": ("abd",)}, ("force_words='abd'", "no tokens spell it")),
        ({"force_words": ("abc",), "bad_words": ("bc",)}, ("force_words='abc'", "bad_words")),
        ({"force_words": ("abc",), "stop": ("bc",)}, ("force_words='abc'", "stop='bc'")),
        ({"force_words": ("ab",), "stop": ("bc",)}, ("force_words='ab' overlaps stop='bc'",)),
        ({"force_words": ("b",), "stop": ("abc",)}, ("overlaps",)),
        ({"force_words": tuple("abcabcabc")}, ("9 strings", "8")),
    ],
)
def test_impossible_constraints_are_refused(settings, parts):
    def run():
        sampling = SamplingConfig(**settings)
        model = make("modern", vocab_size=4)
        return new_tokens(model, [[0]], max_new_tokens=4, sampling=sampling, vocabulary=vocabulary("a", "b", "c"))

    if parts is None:
        assert len(run()[0]) == 4
    else:
        with pytest.raises(InputError) as error:
            run()
        assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value)


def test_the_matcher_finds_every_string_wherever_it_ends():
    for _ in range(500):
        strings = ["".join(RANDOM.choices("ab", k=RANDOM.randrange(1, 5))) for _ in range(RANDOM.randrange(1, 5))]
        matcher = StringMatcher([(string, 1 << i) for i, string in enumerate(strings)])
        text, node = "", 0
        for _ in range(30):
            text += RANDOM.choice("ab")
            node = matcher.step(node, ord(text[-1]))
            found = [text.endswith(string) for string in strings]
            assert [bool(matcher.found[node] >> i & 1) for i in range(len(strings))] == found
            assert matcher.longest[node] == max(
                [0, *(len(s) for s, there in zip(strings, found, strict=True) if there)]
            )
            begun = [n for s in strings for n in range(len(s) + 1) if text.endswith(s[:n])]
            assert matcher.depth[node] == max(begun)
