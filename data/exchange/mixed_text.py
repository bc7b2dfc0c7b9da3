"""Text to compare tokenizers on: prose, code, scripts, odd white space, digits; the same in every run."""

from __future__ import annotations

import random
from collections.abc import Sequence

PROSE = (
    "The night was clear, and nobody at the harbour had slept. 'You're late,' she said; they'd been waiting since "
    "half past four, and it wasn't the first time. I'm told that we've all seen it, or THEY'LL say so: DON'T ask. "
    'A "well-known" problem (see p. 12, fig. 3a) costs about $1,234.56 — 7% more than in 1998–99… naïve café, déjà vu, '
    "coöperate, Straße, ſtrange. Æsop & Œdipus; 3rd, 21st, 0x1F, 1e-9, 100000000000 and 12345678901234567890.\n"
)
CODE = (
    'def area(width: float, height=2.5) -> float:\n    """Returns m²."""\n    if width<0 or not height:\n'
    "\t\traise ValueError(f'{width!r} is < 0')  # never\n    return width*height // 1\n\n\n"
    'for (int i = 0; i < n; ++i) { a[i] += b->c[i & 0xff]; }\r\n\r\n<div class="x">&nbsp;</div>\r\n'
    "SELECT * FROM t WHERE id IN (1,2,3) AND name LIKE '%s';\nhttps://example.org/a_b?q=1&r=%20#top\n$x ||= {};\n"
)
SCRIPTS = (
    "Съешь же ещё этих мягких булок. Ἐν ἀρχῇ ἦν ὁ λόγος. 我能吞下玻璃而不伤身体。私はガラスを食べられます。"
    "나는 유리를 먹을 수 있어요. أنا قادر على أكل الزجاج و هذا لا يؤلمني. אני יכול לאכול זכוכית. "
    "मैं काँच खा सकता हूँ। ฉันกินกระจกได้ Tôi có thể ăn thủy tinh. ١٢٣ ४५६ ½ Ⅻ ② é é ﬁ Å\n"
)
SIGNS = (
    "\U0001f44d\U0001f3fd \U0001f469\u200d\U0001f467 \U0001f1ea\U0001f1fa \U0001f3f4\U000e0067\U000e007f "
    "☃\ufe0f ∑∫√∞≠ →⇒ ♠♥ ¿¡ «» ‹› „“ ´` ~~~ ... !!! ??? ---- ==== #### ***\n"
)
SPACES = (
    "a  b   c    d\te\t\tf \t g\n\n\nh \n \n  i\r\nj\r\rk\u00a0l\u2003m\u3000n\u200bo\u2028"
    "p\x0bq\x0cr\x1cs\x85t      \n"
)
ODD = (
    "\x00\x01\x04\x7f\x9f \ufeff\ufffd \ue000 \U000f0000 'S 'Ll 'RE' ''s s' ' t'\u2581x\u2581\u2581y "
    "<0x0A> <s> </s> e\u0301 \U00040000\n"
)
PASSAGES = (PROSE, CODE, SCRIPTS, SIGNS, SPACES, ODD)
ALPHABET = sorted({*"".join(PASSAGES)})
COMMON = " \n\t'.,-_0123456789aeinorstAEST"


def mixed_text(n_bytes: int, special: Sequence[str] = ()) -> str:
    """Returns about n_bytes of text in UTF-8, at least one passage. special: names that also occur in it."""
    source = random.Random(2)
    words = "".join(PASSAGES).split(" ")
    passages: list[str] = []
    size = 0
    while not passages or size < n_bytes:
        kind = source.randrange(len(PASSAGES) + 3)
        if kind < len(PASSAGES):
            passage = PASSAGES[kind]
        elif kind == len(PASSAGES):  # any words in any order, with changes of case
            chosen = source.choices(words, k=200)
            passage = " ".join(word.upper() if source.random() < 0.1 else word.title() for word in chosen)
        elif kind == len(PASSAGES) + 1:
            passage = _random_text(source, 300)
        else:
            names = source.choices(special or ("<|endoftext|>",), k=5)
            passage = "".join(source.choice(("", " ", "\n", "x")) + name for name in names)
        passages.append(passage)
        size += len(passage.encode())
    return "".join(passages)


def fuzz_strings(n: int, seed: int) -> list[str]:
    """Returns n short random texts; the first one is empty."""
    source = random.Random(seed)
    return [_random_text(source, source.randrange(1, 40)) if index else "" for index in range(n)]


def _random_text(source: random.Random, length: int) -> str:
    """Returns characters of an alphabet that changes: few of them give runs and repeats, many give odd neighbours."""
    alphabet = source.choice((ALPHABET, COMMON, source.choices(ALPHABET, k=4), source.choices(COMMON, k=3)))
    return "".join(source.choices(alphabet, k=length))
