"""Stop strings, bad words and forced words, found in the bytes of the new text, however it is tokenized."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import InputError
from .sampling import SamplingConfig
from .vocabulary import Vocabulary


class StringMatcher:
    """Finds several byte strings in a stream: an Aho-Corasick automaton (Aho and Corasick 1975).

    Its nodes form a trie of the strings. The current node is the longest suffix of the stream that is a prefix of some
    string; node 0 is the empty one. Each string has a mark (a bit). For each node:

    children: the next node by byte
    fail:     the node of the next shorter such suffix
    depth:    the length of the suffix in bytes
    found:    the marks of all strings that end here, combined with |
    longest:  the length in bytes of the longest string that ends here
    """

    def __init__(self, strings: Sequence[tuple[str, int]]) -> None:
        self.children: list[dict[int, int]] = [{}]
        self.fail, self.depth, self.found, self.longest = [0], [0], [0], [0]
        for string, mark in strings:
            node = 0
            for byte in string.encode():
                if byte not in self.children[node]:
                    self.children[node][byte] = len(self.children)
                    self.children.append({})
                    self.depth.append(self.depth[node] + 1)
                    for column in (self.fail, self.found, self.longest):
                        column.append(0)
                node = self.children[node][byte]
            self.found[node] |= mark
            self.longest[node] = self.depth[node]
        queue = [0]
        for node in queue:  # breadth-first: fail links lead to shorter nodes, which are complete by then
            for byte, child in self.children[node].items():
                self.fail[child] = self.step(self.fail[node], byte) if node else 0
                self.found[child] |= self.found[self.fail[child]]
                self.longest[child] = self.longest[child] or self.longest[self.fail[child]]
                queue.append(child)

    def step(self, node: int, byte: int) -> int:
        """The node after one more byte."""
        while node and byte not in self.children[node]:
            node = self.fail[node]
        return self.children[node].get(byte, 0)

    def walk(self, node: int, data: bytes) -> tuple[int, int]:
        """Returns the node after `data` and the marks of all strings that ended on the way."""
        found = 0
        for byte in data:
            node = self.step(node, byte)
            found |= self.found[node]
        return node, found


class TextStream:
    """The new text of one row, released in whole characters and held back where a stop string may have started.

    `stopped` becomes True when a stop string is complete; the text ends before it.
    """

    def __init__(self, stops: StringMatcher) -> None:
        self.stops = stops
        self.node = 0
        self.held = b""
        self.stopped = False
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, data: bytes, *, may_stop: bool = True) -> str:
        """Adds a token's bytes; returns the text that is now certain. may_stop=False keeps stop strings as text."""
        for count, byte in enumerate(data, start=1):
            self.node = self.stops.step(self.node, byte)
            if may_stop and self.stops.found[self.node]:
                self.stopped = True
                read = self.held + data[:count]
                return self.decoder.decode(read[: len(read) - self.stops.longest[self.node]], final=True)
        read = self.held + data
        certain = len(read) - self.stops.depth[self.node]
        self.held = read[certain:]
        return self.decoder.decode(read[:certain])

    def end(self, *, complete: bool) -> str:
        """Returns the text held back; an unfinished character becomes U+FFFD if the text is complete, else nothing."""
        return self.decoder.decode(self.held, final=complete)


BAD, STOP, FORCED = 1, 2, 4  # marks; the i-th forced word has FORCED << i
MAX_FORCED = 8  # tables have 2^n rows for n forced words
IMPOSSIBLE = 1 << 40
State = tuple[int, int]  # of a row: the matcher's node after its text, and the forced words still missing, as bits


class Constraints:
    """The tokens that bad_words, force_words and min_new_tokens allow.

    They exclude a token that completes a bad word; the end token before min_new_tokens; and while a forced word is
    missing the end token, a stop string, and a token after which the missing words no longer fit into the tokens left.
    So a forced word that the model does not write by itself comes at the last moment. Raises InputError if the
    constraints cannot be met within `max_new_tokens`.
    """

    @staticmethod
    def of(vocabulary: Vocabulary, sampling: SamplingConfig, *, max_new_tokens: int) -> Constraints | None:
        """The constraints in these settings, or None if there are none."""
        return Constraints(vocabulary, sampling, max_new_tokens=max_new_tokens) if sampling.has_constraints else None

    def __init__(self, vocabulary: Vocabulary, sampling: SamplingConfig, *, max_new_tokens: int) -> None:
        self.sampling, self.V = sampling, len(vocabulary.tokens)
        self.end_ids = [token for token in (vocabulary.end_id, *vocabulary.ends) if token >= 0]
        self.texts = [vocabulary.text(token) for token in range(self.V)]
        self.by_first_byte: dict[bytes, list[int]] = {}  # tokens; under b"" those without text
        for token, text in enumerate(self.texts):
            self.by_first_byte.setdefault(text[:1], []).append(token)
        strings = [(text, BAD) for text in sampling.bad_words]
        if sampling.force_words:
            strings += [(text, STOP) for text in sampling.stop]
        self.matcher = StringMatcher(strings + [(text, FORCED << i) for i, text in enumerate(sampling.force_words)])
        self.start: State = (0, (1 << len(sampling.force_words)) - 1)
        self._transitions: dict[int, tuple[Tensor, Tensor]] = {}
        self._masks: dict[tuple[State, bool, int], Tensor] = {}
        self.needed = torch.zeros(1, len(self.matcher.depth))  # tokens, by missing words and node
        if sampling.force_words:
            self.needed = self.tokens_needed(max_new_tokens)
        self.max_needed = int(self.needed[self.needed < IMPOSSIBLE].max())

    def advance(self, state: State, token: int) -> State:
        """The state of a row after one more token."""
        node, found = self.matcher.walk(state[0], self.texts[token])
        return node, state[1] & ~(found // FORCED)

    def allowed(self, state: State, n_generated: int, *, max_new_tokens: int) -> Tensor:
        """The mask (V,), bool, of the tokens that a row with n_generated of max_new_tokens may get next."""
        (node, missing), n_left = state, max_new_tokens - n_generated
        may_end = not missing and n_generated >= self.sampling.min_new_tokens
        key = (state, may_end, min(n_left, self.max_needed + 1))  # beyond that, more tokens make no difference
        if key not in self._masks:
            next_node, found = self.transitions(node)
            mask = found & BAD == 0
            if missing:
                still_needed = self.needed[missing & ~(found // FORCED), next_node]
                mask &= (found & STOP == 0) & (still_needed < min(n_left, IMPOSSIBLE))
            for token in self.end_ids:
                mask[token] = may_end
            if not mask.any():
                raise InputError(f"bad_words={list(self.sampling.bad_words)} leaves no token; remove some")
            self._masks[key] = mask
        return self._masks[key]

    def transitions(self, node: int) -> tuple[Tensor, Tensor]:
        """For each token read at a node: the next node, and the marks of the strings it completes, both (V,).

        Only tokens whose first byte continues the node's suffix, or that have no text, need a walk: every other token
        does the same as at the fail node.
        """
        pending = [node]
        while pending[-1] not in self._transitions and pending[-1] != 0:
            pending.append(self.matcher.fail[pending[-1]])
        for current in reversed(pending):
            if current in self._transitions:
                continue
            if current == 0:
                next_node, found = torch.zeros(2, self.V, dtype=torch.int64)
                tokens = list(range(self.V))
            else:
                next_node, found = (table.clone() for table in self._transitions[self.matcher.fail[current]])
                first_bytes = [b"", *(bytes([byte]) for byte in self.matcher.children[current])]
                tokens = [token for first in first_bytes for token in self.by_first_byte.get(first, [])]
            walks = [self.matcher.walk(current, self.texts[token]) for token in tokens]
            next_node[tokens], found[tokens] = torch.tensor(walks, dtype=torch.int64).view(-1, 2).T
            self._transitions[current] = next_node, found
        return self._transitions[node]

    def tokens_needed(self, max_new_tokens: int) -> Tensor:
        """The fewest tokens that write the missing words, (2^F, N) for F forced words and N nodes.

        needed[missing, node] = 1 + min over allowed tokens of needed[still missing, next node], iterated until nothing
        changes. A token never adds missing words, so rows are computed in order of their number.
        """
        forced, stops = self.sampling.force_words, self.sampling.stop
        if len(forced) > MAX_FORCED:
            raise InputError(f"force_words has {len(forced)} strings; at most {MAX_FORCED} are possible")
        for text in forced:
            for stop in stops:
                if text in stop or any(stop.startswith(text[i:]) for i in range(len(text))):
                    raise InputError(f"force_words={text!r} overlaps stop={stop!r}, which would cut it off; change one")
        tables = [self.transitions(node) for node in range(len(self.matcher.depth))]
        # (2N, V) -> (2N, fewer): tokens with the same transitions at every node count once.
        table = torch.stack([tensor for pair in zip(*tables, strict=True) for tensor in pair]).unique(dim=1)
        next_node, found = table.view(2, len(tables), -1)
        excluded = found & (BAD | STOP) != 0
        needed = torch.full((1 << len(forced), len(tables)), IMPOSSIBLE)
        needed[0] = 0
        for missing in range(1, len(needed)):
            while True:
                cost = needed[missing & ~(found // FORCED), next_node].masked_fill(excluded, IMPOSSIBLE)
                better = (cost.amin(dim=1) + 1).clamp(max=IMPOSSIBLE)
                if torch.equal(better, needed[missing]):
                    break
                needed[missing] = better
        for i, text in enumerate(forced):
            if needed[1 << i, 0] == IMPOSSIBLE:
                raise InputError(f"force_words={text!r}: no tokens spell it that bad_words and stop allow; change one")
        if (fewest := int(needed[-1, 0])) == IMPOSSIBLE:
            raise InputError(f"force_words={list(forced)} cannot be written together; remove some")
        if fewest > max_new_tokens:
            raise InputError(f"force_words={list(forced)} needs {fewest} tokens; raise max_new_tokens={max_new_tokens}")
        return needed
