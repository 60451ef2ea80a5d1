"""A decoder and a sampler that are small, exact and strict, in place of the compiled ones.

The state of a row is a hash of the state before it, its token, its position and its phase, as the real bits depend on
them; logits are numbers from that state. So a row that is evaluated twice, in the wrong phase, at the wrong position or
over another prefix changes the text.
"""

import hashlib
import threading

import numpy as np

VOCAB = 300
PAGE = 4


class CacheFullError(RuntimeError):
    """As the compiled core's."""


class FakeDecoder:
    """A model whose logits are numbers from a hash, over sequences that are lists of states.

    Args:
        max_positions: of all sequences together, in whole pages; nothing is shared.
        window: a sequence cannot be cut back, nor forked, further than this from its end; 0: to any length.
        on_pass: called with the phase and the number of rows in the middle of every pass.
        after_pass: the same at its end.
    """

    def __init__(self, vocab=VOCAB, max_positions=0, window=0, on_pass=None, after_pass=None, temperature=8.0):
        self.vocab, self.max_positions, self.window, self.on_pass = vocab, max_positions, window, on_pass
        self.temperature, self.after_pass = temperature, after_pass
        self.sequences = {}
        self.passes = []  # (phase, rows of each chunk)
        self.next_id = 0
        self.busy = threading.Lock()
        self.tree = None  # (sequence, its length, states, logits' tokens and parents, which ones are of the draft)
        self.agreement = 1.0  # how often the draft's most likely token is the target's
        self.nan_after = None  # a token after which all logits are NaN

    def _exclusive(self):
        assert self.busy.acquire(blocking=False), "two threads use the decoder"

    def create(self):
        return self._insert([])

    def fork(self, seq, length):
        if not self._holds(seq, length):
            raise ValueError(f"fork: sequence {seq} does not hold {length}")
        return self._insert(self.sequences[seq][:length])

    def release(self, seq):
        del self.sequences[seq]

    def length(self, seq):
        return len(self.sequences[seq])

    def truncate(self, seq, length):
        self.tree = None
        if not self._holds(seq, length):
            return False
        del self.sequences[seq][length:]
        return True

    def forward(self, ids, tokens, phase, wanted, rope_lengths=None, num_threads=0):
        self._exclusive()
        try:
            return self._forward(ids, tokens, phase, wanted, rope_lengths)
        finally:
            self.busy.release()

    def _forward(self, ids, tokens, phase, wanted, rope_lengths):
        self.tree = None
        assert phase in ("prompt", "decode")
        assert len(ids) == len(set(ids)) == len(tokens) == len(wanted)
        assert all(len(chunk) for chunk in tokens)
        assert all(chunk.dtype == np.int32 for chunk in (*tokens, *wanted))
        self._reserve(ids, tokens)
        if self.on_pass:
            self.on_pass(phase, sum(map(len, tokens)))
        rows, grown = [], []
        for number, (seq, chunk, want) in enumerate(zip(ids, tokens, wanted, strict=True)):
            states = list(self.sequences[seq])
            for token in chunk:
                assert 0 <= token < self.vocab
                rope = rope_lengths[number] if rope_lengths is not None else None
                states.append(self._state(states[-1] if states else 0, int(token), len(states), phase, rope))
            first = len(states) - len(chunk)
            rows += [self._logits(states[first + row], chunk[row]) for row in want]
            grown.append(states)
        for seq, states in zip(ids, grown, strict=True):
            self.sequences[seq] = states
        self.passes.append((phase, [len(chunk) for chunk in tokens]))
        if self.after_pass:
            self.after_pass(phase, sum(map(len, tokens)))
        return np.stack(rows) if rows else np.empty((0, self.vocab), np.float32)

    def forward_tree(self, seq, tokens, parents, num_threads=0, first=0, draft=False):
        self._exclusive()
        try:
            return self._forward_tree(seq, tokens.tolist(), parents.tolist(), first, draft)
        finally:
            self.busy.release()

    def _forward_tree(self, seq, tokens, parents, first, draft):
        assert 0 <= first <= len(tokens) == len(parents)
        assert all(-1 <= parent < place for place, parent in enumerate(parents))
        assert all(0 <= token < self.vocab for token in tokens)
        before = self.sequences[seq]
        old, drafted = [], []
        if first:
            assert self.tree is not None, "no tree to go on with"
            known, length, old, known_tokens, known_parents, drafted = self.tree
            assert (known, length) == (seq, len(before)), "another sequence, or it has changed"
            assert known_tokens[:first] == tokens[:first]
            assert known_parents[:first] == parents[:first]
        after = sum(self._pages(len(states)) for states in self.sequences.values()) - self._pages(len(before))
        self._check_room(after + self._pages(len(before) + len(tokens)))
        if self.on_pass:
            self.on_pass("draft" if draft else "tree", len(tokens) - first)
        self.tree = None
        states, depths, rows = list(old[:first]), [], []
        for place, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
            if place < first:
                continue
            above = states[parent] if parent >= 0 else before[-1] if before else 0
            states.append(self._state(above, token, len(before) + depths[place], "decode", None))
            rows.append(self._logits(states[-1], token, draft))
        self.tree = (seq, len(before), states, tokens, parents, drafted[:first] + [draft] * (len(tokens) - first))
        self.passes.append(("draft" if draft else "tree", [len(tokens) - first]))
        if self.after_pass:
            self.after_pass("draft" if draft else "tree", len(tokens) - first)
        return np.stack(rows)

    def keep(self, seq, nodes):
        known, length, states, _, parents, drafted = self.tree
        assert (known, length) == (seq, len(self.sequences[seq]))
        assert not any(drafted[node] for node in nodes)
        assert [parents[node] for node in nodes] == [-1, *nodes[:-1]][: len(nodes)]
        self.sequences[seq] += [states[node] for node in nodes]
        self.tree = None

    def save(self, seq):
        return "\n".join(self.sequences[seq]).encode()

    def restore(self, data):
        states = bytes(data).decode().split()
        self._check_room(sum(self._pages(len(states)) for states in self.sequences.values()) + self._pages(len(states)))
        return self._insert(states)

    def _insert(self, states):
        self.sequences[self.next_id] = states
        self.next_id += 1
        return self.next_id - 1

    def _holds(self, seq, length):
        now = len(self.sequences[seq])
        assert 0 <= length <= now
        return not self.window or now - length <= self.window or length == 0

    def _reserve(self, ids, tokens):
        after = {seq: len(states) for seq, states in self.sequences.items()}
        for seq, chunk in zip(ids, tokens, strict=True):
            after[seq] += len(chunk)
        self._check_room(sum(map(self._pages, after.values())))

    def _pages(self, length):
        return -(-length // PAGE)

    def _check_room(self, pages):
        if self.max_positions and pages > -(-self.max_positions // PAGE):
            raise CacheFullError("the cache is full")

    @staticmethod
    def _state(before, token, position, phase, rope):
        return hashlib.sha256(repr((before, token, position, phase, rope)).encode()).hexdigest()[:16]

    def _logits(self, state, token, draft=False):
        if token == self.nan_after:
            return np.full(self.vocab, np.nan, np.float32)
        rng = np.random.default_rng(int(state, 16))
        logits = (rng.standard_normal(self.vocab) * self.temperature).astype(np.float32)
        return logits[::-1].copy() if draft and rng.random() >= self.agreement else logits


class FakeSampler:
    """Greedy, or a draw from the softmax by a number that depends on the seed and on how many came before."""

    def __init__(self, **params):
        self.params = params
        self.draws = 0

    def sample(self, logits, history, mask, prompt_size):
        assert logits.dtype == np.float32
        assert history.dtype == np.int32
        values = logits.astype(np.float64)
        for token, bias in self.params["logit_bias"]:
            values[token] += bias
        if self.params["repetition_penalty"] != 1:
            seen = np.unique(history)
            penalty = self.params["repetition_penalty"]
            values[seen] = np.where(values[seen] > 0, values[seen] / penalty, values[seen] * penalty)
        new, counts = np.unique(history[prompt_size:], return_counts=True)
        values[new] -= self.params["presence_penalty"] + self.params["frequency_penalty"] * counts
        if mask is not None:
            assert mask.dtype == np.uint32
            bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(values)].astype(bool)
            if not bits.any():
                raise ValueError("[sample] the mask allows no token")
            values[~bits] = -np.inf
        if np.isnan(values).any():
            raise ValueError("[sample] a logit is NaN")
        number, self.draws = self.draws, self.draws + 1
        if self.params["temperature"] == 0:
            return int(values.argmax())
        weights = np.exp((values - values.max()) / self.params["temperature"])
        return int(np.random.default_rng([self.params["seed"], number]).choice(len(weights), p=weights / weights.sum()))


def log_softmax(rows):
    rows = rows.astype(np.float64)
    rows = rows - rows.max(-1, keepdims=True)
    return (rows - np.log(np.exp(rows).sum(-1, keepdims=True))).astype(np.float32)


def log_probabilities(logits, ids):
    return log_softmax(logits)[np.arange(len(ids)), ids]


def top_log_probabilities(row, n):
    values = log_softmax(row[None])[0]
    ids = np.argsort(-values, kind="stable")[:n].astype(np.int32)
    return ids, values[ids]


class ChatTemplate:
    """As the real one, but for Jinja."""

    def render(self, messages, add_generation_prompt=True, tools=None, greeting=""):
        text = greeting + "".join(f"[{message['role']}]{message['content']}\n" for message in messages)
        return text + "[assistant]" * add_generation_prompt
