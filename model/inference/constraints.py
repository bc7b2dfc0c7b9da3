"""Constraints on the new text: stop strings, banned strings, forced strings; and the text, character by character.

A string may be cut into tokens in many ways and a token may end in the middle of a character, so nothing here compares
tokens: all strings are looked for in the bytes, by one automaton that reads each byte once.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import InputError
from .sampling import SamplingConfig
from .vocabulary import Vocabulary


class Matcher:
    """Finds all of several byte strings in a stream (Aho and Corasick 1975).

    A node stands for the longest end of the stream that begins some string: `depth` bytes. `children` continue it,
    `back` leads to the next shorter such end. `found` unites the marks (bits) of the strings that end here, `longest`
    is the length of the longest of them. Node 0: nothing begins here.
    """

    def __init__(self, strings: Sequence[tuple[str, int]]) -> None:
        self.children: list[dict[int, int]] = [{}]
        self.depth, self.found, self.longest, self.back = [0], [0], [0], [0]
        for string, mark in strings:
            node = 0
            for byte in string.encode():
                if byte not in self.children[node]:
                    self.children[node][byte] = len(self.children)
                    self.children.append({})
                    self.depth.append(self.depth[node] + 1)
                    for column in (self.found, self.longest, self.back):
                        column.append(0)
                node = self.children[node][byte]
            self.found[node] |= mark
            self.longest[node] = self.depth[node]
        queue = [0]
        for node in queue:  # by depth: what a node leads back to is shorter and is done already
            for byte, child in self.children[node].items():
                self.back[child] = self.step(self.back[node], byte) if node else 0
                self.found[child] |= self.found[self.back[child]]
                self.longest[child] = self.longest[child] or self.longest[self.back[child]]
                queue.append(child)

    def step(self, node: int, byte: int) -> int:
        while node and byte not in self.children[node]:
            node = self.back[node]
        return self.children[node].get(byte, 0)

    def walk(self, node: int, data: bytes) -> tuple[int, int]:
        """The node after data, and the marks of all strings that ended on the way."""
        found = 0
        for byte in data:
            node = self.step(node, byte)
            found |= self.found[node]
        return node, found


class Text:
    """The new text of one row, given out as it becomes certain: whole characters, nothing that may begin a stop string.

    `stopped` is set by a stop string; the text ends before it.
    """

    def __init__(self, stops: Matcher) -> None:
        self.stops = stops
        self.node = 0
        self.held = b""
        self.stopped = False
        self.characters = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, data: bytes, *, may_stop: bool = True) -> str:
        """Takes a token's bytes; the text that is certain now. may_stop=False: stop strings that end here are text."""
        for count, byte in enumerate(data, start=1):
            self.node = self.stops.step(self.node, byte)
            if may_stop and self.stops.found[self.node]:
                self.stopped = True
                read = self.held + data[:count]
                return self.characters.decode(read[: len(read) - self.stops.longest[self.node]], final=True)
        read = self.held + data
        certain = len(read) - self.stops.depth[self.node]
        self.held = read[certain:]
        return self.characters.decode(read[:certain])

    def end(self, *, whole: bool) -> str:
        """What was held back. A character that is cut in half is left out, or shown as U+FFFD if the text is whole."""
        return self.characters.decode(self.held, final=whole)


BANNED, STOP, FORCED = 1, 2, 4  # marks: a string to avoid, one that ends the text, the first of those that must come
NEVER = 1 << 40
State = tuple[int, int]  # of a row: the matcher's node after its text, and the forced strings that it lacks, as bits


class Rules:
    """Which tokens banned, forced and min_new_tokens leave to choose from.

    Excluded are: a token that completes a banned string; the end token before min_new_tokens or while a forced string
    is missing; a token that completes a stop string while one is missing; and a token after which the missing ones no
    longer fit into the tokens left. So a forced string that the model does not write itself comes at the last moment.
    Raises InputError for what cannot be fulfilled within `room` tokens.
    """

    def __init__(self, vocabulary: Vocabulary, sampling: SamplingConfig, *, room: int) -> None:
        self.sampling, self.end_id, self.V = sampling, vocabulary.end_id, len(vocabulary.tokens)
        self.texts = [vocabulary.text(token) for token in range(self.V)]
        self.begins: dict[bytes, list[int]] = {}  # the tokens that begin with a byte; b"" for those without text
        for token, text in enumerate(self.texts):
            self.begins.setdefault(text[:1], []).append(token)
        strings = [(text, BANNED) for text in sampling.bad_words]
        if sampling.force_words:
            strings += [(text, STOP) for text in sampling.stop]
        self.matcher = Matcher(strings + [(text, FORCED << i) for i, text in enumerate(sampling.force_words)])
        self.start: State = (0, (1 << len(sampling.force_words)) - 1)
        self.effects: dict[int, tuple[Tensor, Tensor]] = {}
        self.masks: dict[tuple[State, bool, int], Tensor] = {}
        self.needed = self.tokens_needed(room) if sampling.force_words else torch.zeros(1, len(self.matcher.depth))
        self.most = int(self.needed[self.needed < NEVER].max())

    def after(self, state: State, token: int) -> State:
        """The state of a row that gets one more token."""
        node, found = self.matcher.walk(state[0], self.texts[token])
        return node, state[1] & ~(found // FORCED)

    def allowed(self, state: State, *, made: int, left: int) -> Tensor:
        """The tokens (V,), bool, that a row may choose: it has `made` new tokens and may make `left` more."""
        node, missing = state
        may_end = not missing and made >= self.sampling.min_new_tokens
        key = (state, may_end, min(left, self.most + 1))  # with more left than could be needed, all is the same
        if key not in self.masks:
            following, found = self.effect(node)
            mask = found & BANNED == 0
            if missing:
                still_needed = self.needed[missing & ~(found // FORCED), following]
                mask &= (found & STOP == 0) & (still_needed < min(left, NEVER))
            if self.end_id >= 0:  # a vocabulary may have none
                mask[self.end_id] = may_end
            if not mask.any():
                raise InputError(f"bad_words={list(self.sampling.bad_words)} leaves no token to choose from")
            self.masks[key] = mask
        return self.masks[key]

    def effect(self, node: int) -> tuple[Tensor, Tensor]:
        """What each token does at a node: the node it leads to and the marks of what it completes on the way, (V,)."""
        chain = [node]  # it rests on what the node leads back to
        while chain[-1] not in self.effects and chain[-1] != 0:
            chain.append(self.matcher.back[chain[-1]])
        for node in reversed(chain):
            if node in self.effects:
                continue
            if node == 0:
                following, found = torch.zeros(2, self.V, dtype=torch.int64)
                tokens = list(range(self.V))
            else:  # a token that continues nothing here does what it does one step back
                following, found = (effect.clone() for effect in self.effects[self.matcher.back[node]])
                first_bytes = [b"", *(bytes([byte]) for byte in self.matcher.children[node])]
                tokens = [token for first in first_bytes for token in self.begins.get(first, [])]
            walks = [self.matcher.walk(node, self.texts[token]) for token in tokens]
            following[tokens], found[tokens] = torch.tensor(walks, dtype=torch.int64).view(-1, 2).T
            self.effects[node] = following, found
        return self.effects[chain[0]]

    def tokens_needed(self, room: int) -> Tensor:
        """The fewest tokens that write the missing strings, (2^F, N) for F forced strings and N nodes.

        needed[missing, node] = 1 + the least of needed[still missing, next node] over all tokens that are allowed,
        repeated until nothing changes. Fewer missing strings are smaller numbers, and so are known already.
        """
        forced, stops = self.sampling.force_words, self.sampling.stop
        if len(forced) > 8:
            raise InputError(f"forced has {len(forced)} strings; 8 is the most")
        for text in forced:
            for stop in stops:
                if text in stop or any(stop.startswith(text[i:]) for i in range(len(text))):
                    raise InputError(f"force_words={text!r} overlaps stop={stop!r}, which would cut it off; change one")
        effects = [self.effect(node) for node in range(len(self.matcher.depth))]
        # (2N, V) -> (2N, fewer): tokens that do the same at every node count once.
        table = torch.stack([tensor for pair in zip(*effects, strict=True) for tensor in pair]).unique(dim=1)
        following, found = table.view(2, len(effects), -1)
        excluded = found & (BANNED | STOP) != 0
        needed = torch.full((1 << len(forced), len(effects)), NEVER)
        needed[0] = 0
        for missing in range(1, len(needed)):
            while True:
                cost = needed[missing & ~(found // FORCED), following].masked_fill(excluded, NEVER)
                better = (cost.amin(dim=1) + 1).clamp(max=NEVER)
                if torch.equal(better, needed[missing]):
                    break
                needed[missing] = better
        for i, text in enumerate(forced):
            if needed[1 << i, 0] == NEVER:
                raise InputError(
                    f"force_words={text!r}: no tokens spell it without a banned or stop string; change one"
                )
        if (least := int(needed[-1, 0])) > room:
            takes = "cannot be written together" if least == NEVER else f"needs {least} tokens"
            raise InputError(f"force_words={list(forced)} {takes}; max_new_tokens={room} leaves no room for it")
        return needed
