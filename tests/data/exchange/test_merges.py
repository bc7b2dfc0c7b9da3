"""The proof that ranks give the ids of a list of merges, and mixed text."""

from __future__ import annotations

import random

from data.exchange.byte_level.merges import encode_by_list, needed_pairs, why_not_ranks
from data.exchange.byte_level.vocabulary import spell
from data.exchange.mixed_text import fuzz_strings, mixed_text
from data.tokenizers import bpe
from data.tokenizers.bpe import SINGLE_BYTES
from data.tokenizers.kinds import TiktokenTokenizer

CORPUS = "abab baba aabb abba bbab " * 5


def test_what_is_proved_is_true_for_random_vocabularies() -> None:
    source, proved = random.Random(1), 0
    for _ in range(300):
        tokens = [chr(97 + number) for number in range(3)]
        merges = []
        for _ in range(6):
            pair = (source.choice(tokens), source.choice(tokens))
            if "".join(pair) not in tokens:
                merges.append(pair)
                tokens.append("".join(pair))
        ranks = SINGLE_BYTES | {token.encode(): 256 + number for number, token in enumerate(tokens[3:])}
        if why_not_ranks(merges, {spell(token): rank for token, rank in ranks.items()}):
            continue
        proved += 1
        places = {pair: place for place, pair in enumerate(merges)}
        tokenizer = TiktokenTokenizer(ranks, {"<|endoftext|>": 300}, pattern="gpt2")
        for _ in range(30):
            word = "".join(source.choices("abc", k=source.randrange(1, 12)))
            expected = [ranks[token.encode()] for token in encode_by_list(word, places)]
            assert tokenizer.encode(word) == expected, (merges, word)
    assert proved > 50  # and not all are: see the next test


def test_what_differs_is_not_proved() -> None:
    ids = {"a": 97, "b": 98, "c": 99, "ab": 256, "bc": 257, "abc": 258}
    assert why_not_ranks([("a", "b"), ("b", "c"), ("ab", "c")], ids) is None
    assert "another place" in (why_not_ranks([("b", "c"), ("a", "b"), ("ab", "c")], ids) or "")
    assert "missing" in (why_not_ranks([("a", "b"), ("b", "c"), ("a", "bc")], ids) or "")
    crossed = {"a": 97, "b": 98, "c": 99, "d": 100, "bc": 256, "ab": 257, "cd": 258, "abcd": 259}
    assert "do not lead" in (why_not_ranks([("b", "c"), ("a", "b"), ("c", "d"), ("ab", "cd")], crossed) or "")


def test_ranks_trained_here_have_one_merge_a_token() -> None:
    ranks = bpe.train([CORPUS], vocab_size=270)
    tokens = [spell(token) for token in ranks]  # in the order of their ranks
    pairs, unreachable = needed_pairs(tokens[256:])
    assert not unreachable and ["".join(pair) for pair in pairs] == tokens[256:]


def test_mixed_text_is_the_same_each_time_and_holds_special_names() -> None:
    text = mixed_text(50_000, ["<|x|>"])
    assert text == mixed_text(50_000, ["<|x|>"]) and 50_000 <= len(text.encode()) < 60_000 and "<|x|>" in text
    assert "<|x|>" not in mixed_text(50_000) and fuzz_strings(5, 1) == fuzz_strings(9, 1)[:5] != fuzz_strings(5, 2)
