"""The tree of token paths behind a prompt: which mass is closed, in which outcomes, and what is still open."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..inference.sampling import SamplingConfig, probabilities
from .tree import Predictor
from .word_table import Table, Tables
from .words import State

Key = tuple[bytes, State]  # what equal paths share: the outcome's certain bytes, and the state behind them
Name = tuple[str, bytes | str]  # an outcome: its kind, and its bytes or a special token's name


class Node:
    """An expanded path and what is open behind it."""

    def __init__(self, text: bytes, table: Table, mass: float, depth: int, spaced: bool) -> None:
        self.text = text  # the outcome's bytes as far as they are certain
        self.table, self.mass, self.depth, self.spaced = table, mass, depth, spaced
        self.key = text, table.state
        self.base = text if table.state.phase == "word" else b""  # what the heads of the table are added to
        self.masses: Tensor  # (open tokens of the table,): the mass of each child
        self.taken: set[int] = set()  # children that are expanded themselves: places in `masses`
        self.order: list[tuple[float, int]] = []  # the most probable children's masses and places, best first

    def rank_all(self) -> None:
        """Extends `order` to all children."""
        known = {place for _, place in self.order}
        best = self.masses.sort(descending=True)
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        self.order += [(mass, place) for mass, place in pairs if place not in known]


class Search:
    """The tree of paths behind one prompt.

    done + open + continued + impossible = 1 at every step: mass of closed outcomes, of open paths, of paths that
    continue the prompt's last word, and of those that do not repeat the prompt's last bytes.
    """

    def __init__(
        self,
        predictor: Predictor,
        tables: Tables,
        *,
        start: State,
        border: bytes = b"",
        sampling: SamplingConfig | None = None,
    ) -> None:
        self.predictor, self.tables, self.start, self.sampling = predictor, tables, start, sampling
        self.nodes: list[Node] = []
        self.heap: list[tuple[float, int, int]] = []  # of each node its best child: -mass, node, rank in its order
        self.at: defaultdict[bytes, list[Key]] = defaultdict(list)  # the keys of each text
        self.members: defaultdict[Key, list[int]] = defaultdict(list)  # the nodes of each key
        self.chains: dict[Key, Tensor] = {}  # of each key: the open mass along each entry's prefixes, over its nodes
        self.highest: dict[Key, float] = {}  # the maxima of chains, where known
        self.closed: dict[Name, list[float]] = {}  # an outcome's mass, tokenisations, mass spaced
        self.open, self.done, self.continued, self.impossible = 0.0, 0.0, 0.0, 0.0
        self.unsure = 0.0  # open mass behind the prompt's last word and bytes that may or may not continue it
        table = tables.of(State("border", border) if border else start, start)
        self._add([Node(b"", table, 1.0, 0, False)], predictor.root()[None])

    @property
    def total(self) -> float:
        """The mass that outcomes share: all but what continues the prompt's word or does not repeat the prompt."""
        return self.done + self.open

    @property
    def least(self) -> float:
        """The part of the total that is known to begin a new outcome."""
        return max(self.total - self.unsure, 1e-300)

    def best(self, count: int, chosen: set[tuple[int, int]]) -> list[tuple[int, int]]:
        """Up to `count` open children of the largest mass, none of them among the chosen: (node, place) each."""
        found: list[tuple[int, int]] = []
        while self.heap and len(found) < count:
            _, number, rank = heapq.heappop(self.heap)
            node = self.nodes[number]
            _, place = node.order[rank]
            if rank + 1 == len(node.order) < len(node.masses):
                node.rank_all()
            if rank + 1 < len(node.order) and (mass := node.order[rank + 1][0]) > 0:
                heapq.heappush(self.heap, (-mass, number, rank + 1))
            if place not in node.taken and (number, place) not in chosen:
                found.append((number, place))
        return found

    def along(self, text: bytes) -> list[tuple[float, int, int]]:
        """The open children whose bytes are a prefix of the text: (mass, node, place) each."""
        found = []
        for key in self._prefixes(text):
            members = [number for number in self.members[key] if self.nodes[number].depth < self.predictor.depth]
            if members:
                node = self.nodes[members[0]]
                head = text[len(node.base) :]
                for length in range(len(head) + 1):
                    for place in node.table.places(head[:length]):
                        for number in members:
                            if place not in self.nodes[number].taken:
                                found.append((self.nodes[number].masses[place].item(), number, place))
        return found

    def reach(self, text: bytes) -> float:
        """The open mass of all paths whose bytes are a prefix of the text: what may still be added to it."""
        total = 0.0
        for key in self._prefixes(text):
            node = self.nodes[self.members[key][0]]
            entry = node.table.longest_prefix(text[len(node.base) :])
            if entry >= 0:
                total += max(0.0, self.chains[key][entry].item())
        return total

    def unseen(self) -> tuple[float, bytes]:
        """The largest sum of open mass along one chain of nested prefixes, and the last text of that chain."""
        texts = sorted(self.at)
        best: dict[bytes, tuple[float, bytes]] = {}
        behind: defaultdict[bytes, list[bytes]] = defaultdict(list)  # of each text those that extend it next
        stack: list[bytes] = []
        for text in texts:
            while stack and not text.startswith(stack[-1]):
                stack.pop()
            if stack:
                behind[stack[-1]].append(text)
            stack.append(text)
        for text in reversed(texts):
            most = sum(self._highest(key) for key in self.at[text])
            top = most, text
            for longer in behind[text]:
                mass, last = best[longer]
                if mass + most > top[0]:  # else it cannot be the largest
                    top = max(top, (mass + sum(self._through(key, longer) for key in self.at[text]), last))
            best[text] = top
        return best[b""]

    def expand(self, children: Sequence[tuple[int, int]]) -> None:
        """Expands children, each a node's number and a place among its open tokens, in one forward pass."""
        fresh = []
        for number, place in children:
            node = self.nodes[number]
            table, mass = node.table, node.masses[place].item()
            entry = table.entries[place]
            low, high = table.subtrees[entry]
            self.chains[node.key][low:high] -= mass
            self.highest.pop(node.key, None)
            self.open -= mass
            self.unsure -= mass if table.unsure[place] else 0.0
            node.taken.add(place)
            after = self.tables.of(table.next_states[place], self.start)
            spaced = node.spaced or table.spaced[place]
            fresh.append(Node(node.base + table.heads[entry], after, mass, node.depth + 1, spaced))
        tokens = [self.nodes[number].table.token_ids[place] for number, place in children]
        self._add(fresh, self.predictor.expand([number for number, _ in children], tokens))

    def _add(self, fresh: list[Node], logits: Tensor) -> None:
        """Shares out the mass of new nodes among the outcomes that their tokens close and their open children."""
        first = len(self.nodes)
        self.nodes += fresh
        groups: defaultdict[int, list[int]] = defaultdict(list)
        for row, node in enumerate(fresh):
            groups[id(node.table)].append(row)
        for rows in groups.values():
            nodes = [fresh[row] for row in rows]
            table = nodes[0].table
            shares = self._shares(logits[rows], nodes)
            masses = shares[:, table.open_tokens]  # (n, open tokens)
            closed = shares.new_zeros(len(rows), len(table.closings))
            closed.index_add_(1, table.closing_index, shares[:, table.closed_tokens])
            chains, sums, settled = table.chain(masses), masses.sum(dim=1).tolist(), closed.tolist()
            best = masses.topk(min(32, masses.shape[1]), dim=1)
            orders = zip(best.values.tolist(), best.indices.tolist(), strict=True)
            for row, (node, order) in enumerate(zip(nodes, orders, strict=True)):
                node.masses, node.order = masses[row], list(zip(*order, strict=True))
                self._keep(node, first + rows[row], chains[row])
                self._close(node, settled[row])
                self.open += sums[row]
                self.impossible += node.mass - sums[row] - sum(settled[row])
                self.unsure += masses[row][table.unsure].sum().item() if table.any_unsure else 0.0

    def _shares(self, logits: Tensor, nodes: list[Node]) -> Tensor:
        """Logits (n, V) behind nodes of one state -> the mass of each child, (n, V) in float64."""
        filtered = self.sampling is not None and self.sampling.filters
        if not filtered or nodes[0].table.state.phase == "border":  # nothing filters what the prompt says
            log_probs = torch.log_softmax(logits.cpu().double(), dim=-1)  # not all devices have float64
        else:
            kept = probabilities(logits, self.sampling or SamplingConfig()).cpu().double()
            log_probs = (kept / kept.sum(dim=-1, keepdim=True)).log()
        masses = torch.tensor([node.mass for node in nodes], dtype=torch.float64)
        return (log_probs + masses.log()[:, None]).exp()

    def _keep(self, node: Node, number: int, chain: Tensor) -> None:
        if node.key in self.chains:
            self.chains[node.key] += chain
        else:
            self.chains[node.key] = chain.clone()
            self.at[node.text].append(node.key)
        self.highest.pop(node.key, None)
        self.members[node.key].append(number)
        if node.order and node.order[0][0] > 0 and node.depth < self.predictor.depth:
            heapq.heappush(self.heap, (-node.order[0][0], number, 0))

    def _close(self, node: Node, masses: list[float]) -> None:
        """Credits the outcomes that a node's tokens close."""
        for closing, mass in zip(node.table.closings, masses, strict=True):
            if closing.kind == "continues":
                self.continued += mass
            elif mass > 0:
                outcome = closing.kind, closing.name or node.base + closing.head
                record = self.closed.setdefault(outcome, [0.0, 0, 0.0])
                record[0] += mass
                record[1] += 1
                record[2] += mass if node.spaced or closing.spaced else 0.0
                self.done += mass

    def _prefixes(self, text: bytes) -> Iterator[Key]:
        """The keys of expanded nodes whose bytes are a prefix of the text."""
        for end in range(len(text) + 1):
            yield from self.at.get(text[:end], ())

    def _highest(self, key: Key) -> float:
        if key not in self.highest:
            chain = self.chains[key]
            self.highest[key] = max(0.0, chain.max().item()) if len(chain) else 0.0
        return self.highest[key]

    def _through(self, key: Key, longer: bytes) -> float:
        """The largest open mass along a chain of this key's own children that goes with a longer text."""
        node = self.nodes[self.members[key][0]]
        head, chain = longer[len(node.base) :], self.chains[key]
        entry = node.table.longest_prefix(head)
        low, high = node.table.subtree(head)
        here = chain[entry].item() if entry >= 0 else 0.0
        return max(here, chain[low:high].max().item() if low < high else 0.0, 0.0)
