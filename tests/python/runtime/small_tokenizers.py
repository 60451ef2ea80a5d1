"""Tokenizers of every kind that decodes differently, a few hundred tokens each, as the runtime sees them."""

from string import ascii_letters

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

SPACE = "\u2581"
WORDS = ("Hello", "world", "he", "ll", "o", "é", "日本", "x", ".", "\n", "🙂", "a b", "<0x41>")
SPECIAL = ("<bos>", "<eos>")
EXTRA = ("<tool>",)  # an added token that is text


class SmallTokenizer:
    """The interface of tmac's own tokenizer over a `tokenizers.Tokenizer`."""

    def __init__(self, inner):
        self.inner = inner

    @property
    def vocab_size(self):
        return self.inner.get_vocab_size()

    def encode(self, text, add_special_tokens=True):
        return self.inner.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids, skip_special_tokens=True):
        return self.inner.decode([int(token) for token in ids], skip_special_tokens=skip_special_tokens)

    def to_json(self):
        return self.inner.to_str()

    def token_to_id(self, token):
        return self.inner.token_to_id(token)

    def id(self, token):
        found = self.inner.token_to_id(token)
        assert found is not None
        return found


def finished(inner):
    inner.add_special_tokens(list(SPECIAL))
    inner.add_tokens(list(EXTRA))
    return SmallTokenizer(inner)


def byte_level():
    """As GPT-2: tokens are strings of bytes. Every byte, a few words, and pieces of characters."""
    spelling = {bytes([byte]): char for byte, char in zip(range(256), byte_alphabet(), strict=True)}
    texts = [
        *(word.encode() for word in WORDS),
        *(b" " + word.encode() for word in WORDS),
        "日".encode()[:2],
        b"\xff\xfe",
    ]
    names = [*spelling.values(), *("".join(spelling[bytes([byte])] for byte in text) for text in texts)]
    vocab = {name: index for index, name in enumerate(dict.fromkeys(names))}
    inner = Tokenizer(models.BPE(vocab, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return finished(inner)


def byte_alphabet():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def pieces():
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [word.replace(" ", SPACE) for word in WORDS]
    words += [SPACE + word for word in words]
    return list(dict.fromkeys(["<unk>", *fallback, SPACE, *words, *ascii_letters, "\ufffd"]))


def sentencepiece(strip=True):
    """As Llama 2 (a space is put before a text and taken away again), or with `strip` False as Gemma."""
    vocab = {piece: index for index, piece in enumerate(pieces())}
    inner = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", SPACE)
    inner.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if strip else replace
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if strip else back)
    return finished(inner)


def unigram():
    """As T5: the decoder takes the first word's space away by its position."""
    inner = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces()], 0, byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return finished(inner)


def word_piece():
    """As BERT: words are put together with spaces."""
    vocab = {piece: index for index, piece in enumerate(["[UNK]", *WORDS, *(f"##{word}" for word in WORDS)])}
    inner = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.WordPiece()
    return finished(inner)


KINDS = {
    "byte_level": byte_level,
    "sentencepiece": sentencepiece,
    "sentencepiece_without_strip": lambda: sentencepiece(strip=False),
    "unigram": unigram,
    "word_piece": word_piece,
}
