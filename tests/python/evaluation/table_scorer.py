"""A scorer whose logits are a table's rows: what is measured with it can be counted by hand."""

import numpy as np

from tmac._core import log_probabilities


class TableScorer:
    """Row t of `table` f32 `[vocab, vocab]` are the logits after token t, whatever stands before it."""

    def __init__(self, table, *, name="table", bos_id=None, add_bos=False, context_length=1000):
        self.table = np.asarray(table, np.float32)
        self.name, self.bos_id, self.add_bos, self.context_length = name, bos_id, add_bos, context_length
        self.vocab_size = self.table.shape[1]
        self.texts = []

    def encode(self, text):
        return [ord(character) % self.vocab_size for character in text]

    def logits(self, ids):
        self.texts.append(list(ids))
        return self.table[list(ids)]

    def losses(self, ids):
        return -log_probabilities(self.logits(ids)[:-1], np.array(ids[1:], np.int32)).astype(np.float64)

    def losses_of(self, texts):
        return map(self.losses, texts)


def random_scorer(seed=0, vocab=11, scale=1.0, **options):
    return TableScorer(np.random.default_rng(seed).normal(0, scale, (vocab, vocab)), **options)
