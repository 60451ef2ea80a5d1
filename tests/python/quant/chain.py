"""A `BlockSource` of plain torch, for tests of what is done with one."""

from contextlib import contextmanager

import torch
from torch import nn

WIDTH, VOCABULARY = 12, 20


class Mixing(nn.Module):
    """Attention and a feed-forward network of sorts: q and k read one tensor, `out` and `up` others."""

    def __init__(self, mixes):
        super().__init__()
        self.mixes = mixes
        self.q, self.k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 8, bias=False)
        self.up, self.out = nn.Linear(8, 16), nn.Linear(16, WIDTH, bias=False)

    def forward(self, x):
        normed = nn.functional.layer_norm(x, [WIDTH])
        x = x + 0.3 * self.q(normed)
        value = self.k(normed)
        if self.mixes:
            value = value.cumsum(1) / torch.arange(1, value.shape[1] + 1)[:, None]
        return x + self.out(torch.tanh(self.up(value)))


class Head(nn.Module):
    def __init__(self, cap):
        super().__init__()
        self.cap, self.head = cap, nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, x):
        logits = self.head(nn.functional.layer_norm(x, [WIDTH]))
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


class Chain:
    """Blocks `Mixing`, then the head. Counts how often each block is entered and run."""

    fingerprint = "chain"

    def __init__(self, blocks=3, mixes=True, cap=None, seed=0):
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.modules = [*(Mixing(mixes) for _ in range(blocks)), Head(cap)]
        for module in self.modules:
            for parameter in module.parameters():
                parameter.requires_grad_(False)
                parameter.normal_(0, 0.4)
        self.entered, self.runs, self.inside = [], [], 0

    def __len__(self):
        return len(self.modules)

    def layers(self, index):
        return tuple(f"{index}.{name}" for name in self._names(index))

    def _names(self, index):
        return ("head",) if index == len(self) - 1 else ("q", "k", "up", "out")

    @contextmanager
    def block(self, index):
        assert self.inside == 0, "two blocks in memory"
        self.inside += 1
        self.entered.append(index)
        try:
            yield self.modules[index]
        finally:
            self.inside -= 1

    def linears(self, index, module):
        return {f"{index}.{name}": getattr(module, name) for name in self._names(index)}

    def begin(self, ids):
        return self.embedding(ids).detach()

    def run(self, index, module, hidden):
        self.runs.append((index, tuple(hidden.shape)))
        return module(hidden)

    def logits(self, ids):
        hidden = self.begin(ids)
        for module in self.modules:
            hidden = module(hidden)
        return hidden


def ids(windows=8, window=32, seed=0):
    return torch.randint(VOCABULARY, (windows, window), generator=torch.Generator().manual_seed(seed))
