import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import KINDS, SPACE, byte_alphabet, byte_level, sentencepiece

from tmac.runtime.detokenize import Detokenizer, byte_tokens

TOKENIZERS = {name: make() for name, make in KINDS.items()}
REPLACEMENT = "\ufffd"


def streamed(tokenizer, ids, context=()):
    """The pieces of `ids`, the last of them what `finish` gives."""
    detokenizer = Detokenizer(tokenizer, context)
    return [*(detokenizer.add(token) for token in ids), detokenizer.finish()]


def ids_of(tokenizer, most=60):
    """Lists that favour a few tokens, so that runs of bytes, specials and spaces meet; ids past the end as well."""
    last = tokenizer.vocab_size - 1
    return st.lists(st.one_of(st.integers(0, last + 2), st.integers(max(0, last - 40), last)), max_size=most)


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
def test_the_pieces_are_the_text_of_all_tokens(kind, data):
    tokenizer = TOKENIZERS[kind]
    ids = data.draw(ids_of(tokenizer))
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
def test_runs_of_a_few_tokens_and_bytes(kind, data):
    tokenizer = TOKENIZERS[kind]
    bytes_of = "🙂é日\n ".encode()
    spelled = [f"<0x{byte:02X}>" for byte in (*bytes_of, 0xFF)]
    known = [token for token in (tokenizer.inner.token_to_id(name) for name in spelled) if token is not None]
    few = [*known, *range(8), tokenizer.id("<eos>"), tokenizer.id("<tool>"), tokenizer.vocab_size - 5]
    ids = data.draw(st.lists(st.sampled_from(few), max_size=40))
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "sentencepiece_without_strip"])
@given(st.data())
def test_a_text_that_goes_on_keeps_its_spaces(kind, data):
    tokenizer = TOKENIZERS[kind]
    words = st.lists(st.sampled_from(["Hello", "world", " ", "日本", "ö", "🙂", "x"]), min_size=1, max_size=12)
    before, after = (" ".join(data.draw(words)) for _ in range(2))
    prompt = tokenizer.encode(f"<bos>{before}", add_special_tokens=False)
    # As the model would go on: the tokens of both, without those of the first.
    both = tokenizer.encode(f"<bos>{before} {after}", add_special_tokens=False)
    if both[: len(prompt)] != prompt:
        return
    pieces = streamed(tokenizer, both[len(prompt) :], prompt)
    assert "".join(pieces) == f" {after}"


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
def test_windows_make_no_difference_to_long_texts(kind, data):
    tokenizer = TOKENIZERS[kind]
    ids = data.draw(ids_of(tokenizer, most=30)) * 12
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_character_comes_with_its_last_byte():
    tokenizer = byte_level()
    assert streamed(tokenizer, tokenizer.encode("a🙂b")) == ["a", "", "", "", "🙂", "b", ""]


def bytes_spelled(data):
    return [byte_alphabet()[byte] for byte in data]


def test_byte_tokens_wait_for_the_token_after_them():
    tokenizer = sentencepiece()
    ids = [tokenizer.id(f"<0x{byte:02X}>") for byte in "é\n".encode()]
    assert streamed(tokenizer, [*ids, tokenizer.id("x")]) == ["", "", "", "é\nx", ""]


def test_one_wrong_byte_token_replaces_the_bytes_before_it():
    tokenizer = sentencepiece()
    ids = [tokenizer.id(f"<0x{byte:02X}>") for byte in (0x41, 0xFF)]
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids) == REPLACEMENT * 2


def test_a_special_token_does_not_end_the_bytes():
    tokenizer = sentencepiece()
    first, second = (tokenizer.id(f"<0x{byte:02X}>") for byte in "é".encode())
    ids = [first, tokenizer.id("<eos>"), second, tokenizer.id("x")]
    assert streamed(tokenizer, ids) == ["", "", "", "éx", ""]


def test_the_first_word_has_no_space_and_the_next_text_has():
    tokenizer = sentencepiece()
    ids = [tokenizer.id(f"{SPACE}Hello"), tokenizer.id(f"{SPACE}world")]
    assert streamed(tokenizer, ids) == ["Hello", " world", ""]
    assert streamed(tokenizer, ids, context=[tokenizer.id("x")]) == [" Hello", " world", ""]
    assert streamed(tokenizer, ids, context=[tokenizer.id("<bos>")]) == ["Hello", " world", ""]


def test_words_come_at_once():
    tokenizer = byte_level()
    ids = [tokenizer.id(name) for name in ("Hello", "Ġworld", ".")] * 40
    assert streamed(tokenizer, ids) == ["Hello", " world", "."] * 40 + [""]


def test_what_is_missing_at_the_end_is_replaced():
    tokenizer = byte_level()
    assert streamed(tokenizer, [tokenizer.id("x"), tokenizer.id(bytes_spelled(b"\xe6")[0])]) == ["x", "", REPLACEMENT]


def test_byte_tokens_of_each_kind():
    assert {name: len(byte_tokens(tokenizer)) for name, tokenizer in TOKENIZERS.items()} == {
        "byte_level": 0,
        "sentencepiece": 256,
        "sentencepiece_without_strip": 256,
        "unigram": 256,
        "word_piece": 0,
    }


def test_a_long_context_is_not_decoded_as_a_whole():
    class Counting(type(TOKENIZERS["byte_level"])):
        longest = 0

        def decode(self, ids, skip_special_tokens=True):
            Counting.longest = max(Counting.longest, len(ids))
            return super().decode(ids, skip_special_tokens)

    tokenizer = Counting(byte_level().inner)
    ids = [tokenizer.id("Hello")] * 500
    assert "".join(streamed(tokenizer, ids, context=ids)) == "Hello" * 500
    assert Counting.longest < 64
