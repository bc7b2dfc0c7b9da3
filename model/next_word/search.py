"""Best-first search over token paths: a lower and an upper bound for the probability of each outcome.

An outcome is what comes next: a word, a punctuation mark, white space or a special token. Mass is probability: closed
mass belongs to a known outcome for certain; open mass is on paths whose outcome may still grow longer.

A node is a token path that the model has read. Reading it shares the node's mass among its children, the next tokens:
some close an outcome ("." ends a word), the others leave it open. The search expands open children, the most probable
first. The bytes of open children form a prefix tree, and a word can only gain mass that is open on its own prefixes.
So a word's lower bound is its closed mass, and its upper bound adds the open mass on its prefixes. After token healing
(see distribution.py) the first tokens of a path must reproduce the bytes removed from the prompt.
README.md has a worked example.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import InputError
from ..inference.sampling import SamplingConfig, probabilities
from .tree import Predictor
from .word_table import Table, Tables
from .words import State

OutcomeId = tuple[str, bytes | str]  # the kind, and the bytes or a special token's name
Child = tuple[int, int]  # a node's index, and a position among the open tokens of its table


class Group:
    """The nodes with the same certain bytes and the same state. Their children share a table, so their masses add up.

    prefix_mass (texts of the table,): the open mass on each text and its prefixes, summed over the nodes.
    """

    def __init__(self, text: bytes, table: Table) -> None:
        self.text, self.table = text, table
        self.base = text if table.state.phase == "inside" else b""  # the texts of the table follow these bytes
        self.nodes: list[int] = []
        self.prefix_mass = torch.zeros(len(table.texts), dtype=torch.float64)
        self._largest: float | None = None  # the maximum of prefix_mass, while it is known

    def add(self, node: int, prefix_mass: Tensor) -> None:
        self.nodes.append(node)
        self.prefix_mass += prefix_mass
        self._largest = None

    def subtract(self, position: int, mass: float) -> None:
        """Removes the mass of one child, which is being expanded."""
        low, high = self.table.ranges[position]
        self.prefix_mass[low:high] -= mass
        self._largest = None

    def open_mass(self, text: bytes) -> float:
        """Returns the open mass on a text and its prefixes."""
        index = self.table.longest_prefix(text[len(self.base) :])
        return max(0.0, self.prefix_mass[index].item()) if index >= 0 else 0.0

    def largest(self) -> float:
        """Returns the largest open mass on any text and its prefixes."""
        if self._largest is None:
            self._largest = max(0.0, self.prefix_mass.max().item()) if len(self.prefix_mass) else 0.0
        return self._largest

    def largest_through(self, text: bytes) -> float:
        """Like largest(), over the texts that extend the given one and the longest prefix of it."""
        low, high = self.table.extensions(text[len(self.base) :])
        extensions = self.prefix_mass[low:high].max().item() if low < high else 0.0
        return max(self.open_mass(text), extensions)


@dataclass
class Node:
    """A token path that the model has read, and the masses of its open children."""

    group: Group
    mass: float
    depth: int
    spaced: bool
    masses: Tensor = field(init=False)  # (open tokens of the table,)
    ranked: list[tuple[float, int]] = field(init=False)  # (mass, position) of the most probable children, best first
    expanded: set[int] = field(default_factory=set)  # positions of the children that are nodes themselves

    def rank_all(self) -> None:
        """Extends `ranked` to all children."""
        known = {position for _, position in self.ranked}
        best = self.masses.sort(descending=True)
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        self.ranked += [(mass, position) for mass, position in pairs if position not in known]


@dataclass(slots=True)
class Closed:
    """The certain part of an outcome: its mass, the part after a space, the number of token paths that spell it."""

    mass: float = 0.0
    spaced_mass: float = 0.0
    tokenizations: int = 0


class Search:
    """The search after one prompt.

    closed_mass + open_mass + continued_mass + excluded_mass = 1 at every step: the mass of closed outcomes, of open
    paths, of paths that continue the prompt's last word, and of paths that contradict the healed bytes.
    """

    def __init__(
        self, predictor: Predictor, tables: Tables, *, start: State, healed: bytes = b"",
        sampling: SamplingConfig | None = None,
    ) -> None:  # fmt: skip
        """`healed` are the prompt bytes that tokens must reproduce first; `start` is the state after them."""
        self.predictor, self.tables, self.start, self.sampling = predictor, tables, start, sampling
        self.nodes: list[Node] = []
        self.frontier: list[tuple[float, int, int]] = []  # a heap: -mass, node and rank of each node's best child
        self.groups: defaultdict[bytes, dict[State, Group]] = defaultdict(dict)  # by certain bytes, then by state
        self.closed: defaultdict[OutcomeId, Closed] = defaultdict(Closed)
        self.open_mass = self.closed_mass = self.continued_mass = self.excluded_mass = 0.0
        self.ambiguous_mass = 0.0  # open mass that may yet turn out to continue the prompt's last word
        table = tables.table(State("healing", healed) if healed else start, start)
        self._add([Node(self._group(b"", table), 1.0, 0, False)], predictor.root()[None])

    @property
    def total(self) -> float:
        """The mass of all new outcomes, found or not. Bounds are fractions of it."""
        return self.closed_mass + self.open_mass

    @property
    def certain_total(self) -> float:
        """The part of the total that certainly belongs to new outcomes."""
        return max(self.total - self.ambiguous_mass, 1e-300)  # not 0, since bounds are divided by it

    def most_probable(self, count: int, exclude: set[Child]) -> list[Child]:
        """Takes up to `count` open children from the frontier, the most probable first.

        Those in `exclude` leave the frontier too: the caller expands them anyway.
        """
        found: list[Child] = []
        while self.frontier and len(found) < count:
            _, index, rank = heapq.heappop(self.frontier)
            node = self.nodes[index]
            _, position = node.ranked[rank]
            if rank + 1 == len(node.ranked) < len(node.masses):
                node.rank_all()
            if rank + 1 < len(node.ranked) and (mass := node.ranked[rank + 1][0]) > 0:
                heapq.heappush(self.frontier, (-mass, index, rank + 1))
            if position not in node.expanded and (index, position) not in exclude:
                found.append((index, position))
        return found

    def open_children(self, text: bytes) -> list[tuple[float, Child]]:
        """Returns mass and child for each open child whose bytes are a prefix of the text."""
        found = []
        for group in self._prefixes(text):
            members = [index for index in group.nodes if self.nodes[index].depth < self.predictor.depth]
            rest = text[len(group.base) :]
            for length in range(len(rest) + 1 if members else 0):
                for position in group.table.positions(rest[:length]):
                    for index in members:
                        if position not in self.nodes[index].expanded:
                            found.append((self.nodes[index].masses[position].item(), (index, position)))
        return found

    def open_mass_of(self, text: bytes) -> float:
        """Returns an upper bound on the mass that these bytes can still gain: the open mass on their prefixes."""
        return sum(group.open_mass(text) for group in self._prefixes(text))

    def max_unseen(self) -> tuple[float, bytes]:
        """Returns an upper bound on the mass of an outcome not found yet, and a text on whose prefixes it is open.

        The bound is a maximum over chains of nested texts, built from the longest texts to the shortest.
        """
        extensions: defaultdict[bytes, list[bytes]] = defaultdict(list)  # the children of a text in the prefix tree
        best: dict[bytes, tuple[float, bytes]] = {}  # over the chains that begin with a text
        for text in sorted(self.groups, key=len, reverse=True):
            groups = self.groups[text].values()
            own = sum(group.largest() for group in groups)
            best[text] = own, text
            for longer in extensions[text]:
                mass, last = best[longer]
                if mass + own > best[text][0]:  # the exact sum may be smaller, so it is computed only here
                    best[text] = max(best[text], (mass + sum(group.largest_through(longer) for group in groups), last))
            prefixes = (text[:length] for length in reversed(range(len(text))))  # b"" has none; it is in all chains
            parent = next((prefix for prefix in prefixes if prefix in self.groups), None)
            if parent is not None:
                extensions[parent].append(text)
        return best[b""]

    def expand(self, children: Sequence[Child]) -> None:
        """Turns open children into nodes, in one forward pass."""
        new = []
        for index, position in children:
            parent = self.nodes[index]
            group, table, mass = parent.group, parent.group.table, parent.masses[position].item()
            group.subtract(position, mass)
            self.open_mass -= mass
            self.ambiguous_mass -= mass if table.ambiguous[position] else 0.0
            parent.expanded.add(position)
            text = group.base + table.texts[table.text_of[position]]
            child_group = self._group(text, self.tables.table(table.next_states[position], self.start))
            new.append(Node(child_group, mass, parent.depth + 1, parent.spaced or table.spaced[position]))
        tokens = [self.nodes[index].group.table.token_ids[position] for index, position in children]
        self._add(new, self.predictor.expand([index for index, _ in children], tokens))

    def _group(self, text: bytes, table: Table) -> Group:
        groups = self.groups[text]
        if table.state not in groups:
            groups[table.state] = Group(text, table)
        return groups[table.state]

    def _prefixes(self, text: bytes) -> Iterator[Group]:
        """Yields the groups whose bytes are a prefix of the text."""
        for end in range(len(text) + 1):
            if groups := self.groups.get(text[:end]):
                yield from groups.values()

    def _add(self, new: list[Node], logits: Tensor) -> None:
        """Adds nodes, given the logits (n, V) after them: shares their mass among closed outcomes and open children."""
        # Every comparison with NaN is false, so it would certify any order.
        if not logits.amax(dim=-1).isfinite().all():
            raise InputError("the model's logits are not finite: its weights are damaged, use another checkpoint")
        first = len(self.nodes)
        self.nodes += new
        rows_by_table: defaultdict[Table, list[int]] = defaultdict(list)
        for row, node in enumerate(new):
            rows_by_table[node.group.table].append(row)
        for table, rows in rows_by_table.items():
            nodes = [new[row] for row in rows]
            children = self._child_masses(logits[rows], nodes)  # (rows, V)
            masses = children[:, table.open_tokens]  # (rows, open tokens)
            closed = children.new_zeros(len(rows), len(table.closings))
            closed.index_add_(1, table.closing_index, children[:, table.closing_tokens])
            prefix_sums = table.prefix_sums(masses)
            open_sums = masses.sum(dim=1).tolist()
            ambiguous_sums = masses[:, table.ambiguous].sum(dim=1).tolist()
            closed_masses = closed.tolist()
            best = masses.topk(min(32, masses.shape[1]), dim=1)
            for row, node in enumerate(nodes):
                node.masses = masses[row]
                node.ranked = list(zip(best.values[row].tolist(), best.indices[row].tolist(), strict=True))
                node.group.add(first + rows[row], prefix_sums[row])
                if node.ranked and node.ranked[0][0] > 0 and node.depth < self.predictor.depth:
                    heapq.heappush(self.frontier, (-node.ranked[0][0], first + rows[row], 0))
                self._close(node, closed_masses[row])
                self.open_mass += open_sums[row]
                self.ambiguous_mass += ambiguous_sums[row]
                self.excluded_mass += node.mass - open_sums[row] - sum(closed_masses[row])

    def _child_masses(self, logits: Tensor, nodes: list[Node]) -> Tensor:
        """Logits (n, V) after nodes of one state -> the mass of each child, (n, V) in float64."""
        filtered = self.sampling is not None and self.sampling.filters
        if not filtered or nodes[0].group.table.state.phase == "healing":  # filters do not apply to the prompt's bytes
            log_probs = torch.log_softmax(logits.cpu().double(), dim=-1)  # not all devices have float64
        else:
            kept = probabilities(logits, self.sampling or SamplingConfig()).cpu().double()
            log_probs = (kept / kept.sum(dim=-1, keepdim=True)).log()
        masses = torch.tensor([node.mass for node in nodes], dtype=torch.float64)
        return (log_probs + masses.log()[:, None]).exp()

    def _close(self, node: Node, masses: list[float]) -> None:
        """Credits the outcomes that a node's tokens close with their masses."""
        for closing, mass in zip(node.group.table.closings, masses, strict=True):
            if closing.kind == "continues":
                self.continued_mass += mass
            elif mass > 0:
                closed = self.closed[closing.kind, closing.name or node.group.base + closing.certain]
                closed.mass += mass
                closed.tokenizations += 1
                closed.spaced_mass += mass if node.spaced or closing.spaced else 0.0
                self.closed_mass += mass
