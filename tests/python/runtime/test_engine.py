"""What one call gives: texts, reasons, chunks, log-probabilities, errors."""

import itertools

import fakes
import numpy as np
import pytest

from tmac.runtime.generate import Options

PROMPT = "Hello world, Hello"
WARM = {"temperature": 1.0, "ignore_eos": True}


def test_greedy_is_the_most_likely_token_of_each_pass(make_engine):
    engine = make_engine()
    result = engine.generate(PROMPT, max_new_tokens=5, ignore_eos=True)
    ids = engine.tokenizer.encode(PROMPT)
    decoder = fakes.FakeDecoder(engine.vocab_size)
    seq, expected = decoder.create(), []
    row = decoder.forward([seq], [np.array(ids, np.int32)], "prompt", [np.array([len(ids) - 1], np.int32)])[0]
    for _ in range(5):
        expected.append(int(row.argmax()))
        row = decoder.forward([seq], [np.array(expected[-1:], np.int32)], "decode", [np.zeros(1, np.int32)])[0]
    assert result.token_ids == expected
    assert result.text == engine.tokenizer.decode(expected)
    assert (result.finish_reason, result.prompt_tokens) == ("length", len(ids))


def test_chunks_are_the_text(make_engine):
    engine = make_engine()
    whole = engine.generate(PROMPT, max_new_tokens=40, **WARM)
    chunks = list(engine.generate(PROMPT, max_new_tokens=40, stream=True, **WARM))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [token for chunk in chunks for token in chunk.token_ids] == whole.token_ids
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert len(chunks) > 20
    assert all(chunk.text for chunk in chunks[:-1])
    assert chunks[-1].timings.generated_tokens == 40


def test_a_text_is_the_same_alone_in_a_batch_and_in_other_chunks(make_engine):
    prompts = [PROMPT * count for count in (1, 3, 9)] + [[7, 8, 9], [1]]
    alone = [make_engine(chunk_size=32).generate(prompt, **WARM) for prompt in prompts]
    for chunk_size in (1, 7, 256):
        together = make_engine(chunk_size=chunk_size).generate(prompts, **WARM)
        assert [result.text for result in together] == [result.text for result in alone]
        assert [result.token_ids for result in together] == [result.token_ids for result in alone]


def test_seeds(make_engine):
    engine = make_engine()
    texts = {seed: engine.generate(PROMPT, seed=seed, **WARM).text for seed in (0, 1, 2)}
    assert len(set(texts.values())) == 3
    assert engine.generate(PROMPT, seed=1, **WARM).text == texts[1]
    assert engine.generate(PROMPT, seed=None, **WARM).text != engine.generate(PROMPT, seed=None, **WARM).text


def test_a_stream_of_a_batch_says_whose_its_chunks_are(make_engine):
    engine = make_engine()
    prompts = [PROMPT, "world", "x"]
    expected = [result.text for result in engine.generate(prompts, **WARM)]
    texts = [""] * 3
    for chunk in engine.generate(prompts, stream=True, **WARM):
        texts[chunk.index] += chunk.text
    assert texts == expected


def first_token(engine, **options):
    return engine.generate(PROMPT, max_new_tokens=1, ignore_eos=True, **options).token_ids[0]


def test_an_end_of_text_token_ends_it_and_is_no_text(make_engine):
    engine = make_engine()
    eos = engine.tokenizer.id("<eos>")
    result = engine.generate(PROMPT, logit_bias={eos: 1000.0})
    assert (result.text, result.token_ids, result.finish_reason) == ("", [eos], "stop")
    result = engine.generate(PROMPT, logit_bias={eos: 1000.0}, ignore_eos=True, max_new_tokens=3)
    assert (result.text, result.token_ids, result.finish_reason) == ("", [eos] * 3, "length")


def test_stop_strings_end_the_text_wherever_they_are(make_engine):
    engine = make_engine()
    whole = engine.generate(PROMPT, max_new_tokens=60, **WARM)
    for begin, end in itertools.combinations(range(2, 30, 3), 2):
        stop = whole.text[begin:end]
        result = engine.generate(PROMPT, max_new_tokens=60, stop=[stop, "never there"], **WARM)
        assert result.text == whole.text[: whole.text.index(stop)]
        assert (result.finish_reason, result.stop) == ("stop", stop)
        streamed = engine.generate(PROMPT, max_new_tokens=60, stop=stop, stream=True, **WARM)
        assert "".join(chunk.text for chunk in streamed) == result.text


def test_log_probabilities_of_the_chosen_and_of_the_most_likely_tokens(make_engine):
    engine = make_engine()
    result = engine.generate(PROMPT, max_new_tokens=6, logprobs=3, temperature=1.0, logit_bias={5: -np.inf})
    rows = engine.logits([*engine.tokenizer.encode(PROMPT), *result.token_ids])
    first = fakes.log_softmax(rows)[result.prompt_tokens - 1]  # later rows are of another phase in `logits`
    best = np.argsort(-first)[:3]
    assert len(result.logprobs) == 6
    item = result.logprobs[0]
    assert item.logprob == first[item.token_id]
    assert item.top == tuple((int(token), float(first[token])) for token in best)
    assert [entry.token_id for entry in result.logprobs] == result.token_ids
    only = engine.generate(PROMPT, max_new_tokens=2, logprobs=0)
    assert [entry.top for entry in only.logprobs] == [(), ()]
    assert engine.generate(PROMPT, max_new_tokens=2).logprobs is None


def test_penalties_see_the_prompt_and_the_text(make_engine):
    engine = make_engine()
    token = first_token(engine)
    prompt = [*engine.tokenizer.encode(PROMPT)]
    biased = {token: 100.0}
    assert engine.generate([token, *prompt], max_new_tokens=1, logit_bias=biased).token_ids == [token]
    result = engine.generate(prompt, max_new_tokens=150, repetition_penalty=1e6, ignore_eos=True)
    assert len({*result.token_ids, *prompt}) == len(result.token_ids) + len(set(prompt))


def test_presence_and_frequency_are_those_of_the_text(make_engine):
    engine = make_engine()
    token = first_token(engine)
    assert engine.generate([token], max_new_tokens=1, presence_penalty=1e6, logit_bias={token: 999.0}).token_ids == [
        token
    ]
    result = engine.generate([1], max_new_tokens=3, frequency_penalty=400.0, logit_bias={token: 999.0})
    assert result.token_ids == [token] * 3
    assert (
        engine.generate([1], max_new_tokens=4, frequency_penalty=400.0, logit_bias={token: 999.0}).token_ids[3] != token
    )


def test_logits_and_log_probabilities_do_not_depend_on_chunks(make_engine):
    ids = list(range(70))
    one, other = make_engine(chunk_size=1000), make_engine(chunk_size=9)
    rows = one.logits(ids)
    assert rows.shape == (70, one.vocab_size)
    np.testing.assert_array_equal(rows, other.logits(ids))
    expected = fakes.log_probabilities(rows[:-1], np.array(ids[1:]))
    np.testing.assert_array_equal(other.log_probabilities(ids), expected)
    assert one.log_probabilities([3]).shape == (0,)
    assert not one.decoder.sequences


def test_the_context_ends_a_text(make_engine):
    engine = make_engine(context_length=20)
    result = engine.generate([1, 2, 3], max_new_tokens=None, **WARM)
    assert (len(result.token_ids), result.finish_reason) == (17, "length")
    assert engine.generate(list(range(20)), **WARM).finish_reason == "length"
    with pytest.raises(ValueError, match="prompt: 21 tokens are more than the context has, 20"):
        engine.generate(list(range(21)))


def test_a_shifted_context_is_a_new_prompt(make_engine):
    engine = make_engine(context_length=32, eos=False)
    prompt = list(range(10))
    result = engine.generate(prompt, max_new_tokens=60, context_shift=True, n_keep=3)
    assert (len(result.token_ids), result.finish_reason) == (60, "length")
    tokens = prompt + result.token_ids[:22]
    assert len(tokens) == 32
    shifted = tokens[:3] + tokens[-14:]
    fresh = make_engine(context_length=32, eos=False).generate(shifted, max_new_tokens=15)
    assert fresh.token_ids == result.token_ids[22:37]


@pytest.mark.parametrize("context_length", [1, 2, 3, 5])
def test_the_smallest_contexts_shift_too(make_engine, context_length):
    engine = make_engine(context_length=context_length, eos=False)
    assert len(engine.generate([4], max_new_tokens=20, context_shift=True).token_ids) == 20


def test_chat_starts_a_new_text(make_engine):
    engine = make_engine()
    messages = [{"role": "user", "content": "Hello"}]
    assert engine.apply_chat_template(messages) == "[user]Hello\n[assistant]"
    answer = engine.chat(messages, **WARM)
    same = engine.generate("[user]Hello\n[assistant]", add_special_tokens=False, **WARM)
    assert answer.token_ids == same.token_ids
    assert "".join(chunk.text for chunk in engine.chat(messages, stream=True, **WARM)) == answer.text
    greeted = engine.chat(messages, template={"greeting": "Hello"}, **WARM)
    assert greeted.prompt_tokens == answer.prompt_tokens + len(engine.tokenizer.encode("Hello"))


def test_nan_logits_are_an_error_of_their_own_text_only(make_engine):
    engine = make_engine(eos=False)
    expected = engine.generate("world").text
    bad = engine.decoder.nan_after = engine.vocab_size - 1  # an id that no text has
    requests = [engine.submit("world"), engine.submit([bad]), engine.submit("world")]
    assert requests[0].result().text == requests[2].result().text == expected
    with pytest.raises(ValueError, match="NaN"):
        requests[1].result()
    with pytest.raises(ValueError, match="NaN"):
        engine.generate(["world", [bad]])
    assert engine.generate("world").text == expected


def test_timings(make_engine):
    engine = make_engine()
    timings = engine.generate(list(range(100)), max_new_tokens=8, **WARM).timings
    assert (timings.prompt_tokens, timings.reused_tokens, timings.generated_tokens) == (100, 0, 8)
    assert timings.prompt_tokens_per_second == pytest.approx(100 / timings.prompt)
    assert timings.generated_tokens_per_second == pytest.approx(7 / timings.generation)
    assert timings.queued >= 0


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ("", {}, ValueError, "prompt: expected at least one token"),
        ([], {}, ValueError, "prompt: expected at least one token"),
        ([[]], {}, ValueError, "prompt: expected at least one token"),
        (["x", ""], {}, ValueError, "prompt: expected at least one token"),
        ([1, -1], {}, ValueError, r"prompt\[1\]: expected an integer from 0 to \d+, found -1"),
        ([10**9], {}, ValueError, r"prompt\[0\]: expected an integer"),
        ([1.5], {}, TypeError, r"prompt\[0\]: .* found 1.5"),
        ([True], {}, TypeError, r"prompt\[0\]: .* found True"),
        (np.ones(3), {}, TypeError, "prompt: expected integers in one dimension, found float64"),
        (np.ones((1, 3), np.int32), {}, ValueError, "prompt: expected ids in one dimension"),
        (5, {}, TypeError, "prompt: expected a text"),
        (b"x", {}, TypeError, "prompt: expected a text"),
        ({"x": 1}, {}, TypeError, "prompt: expected a text"),
        ("x", {"max_new_tokens": 0}, ValueError, "max_new_tokens: expected an integer at least 1, found 0"),
        ("x", {"max_new_tokens": 2.0}, TypeError, "max_new_tokens"),
        ("x", {"temperature": -1}, ValueError, "temperature: expected a finite number of at least 0"),
        ("x", {"temperature": float("nan")}, ValueError, "temperature"),
        ("x", {"temperature": "hot"}, TypeError, "temperature: expected a number, found 'hot'"),
        ("x", {"top_k": -1}, ValueError, "top_k"),
        ("x", {"top_p": 0}, ValueError, "top_p: expected a finite number above 0 and at most 1, found 0"),
        ("x", {"min_p": 1.5}, ValueError, "min_p"),
        ("x", {"repetition_penalty": 0}, ValueError, "repetition_penalty"),
        ("x", {"presence_penalty": None}, TypeError, "presence_penalty"),
        ("x", {"frequency_penalty": float("inf")}, ValueError, "frequency_penalty"),
        ("x", {"logit_bias": [1]}, TypeError, "logit_bias: expected a dictionary"),
        ("x", {"logit_bias": {-1: 0.0}}, ValueError, "logit_bias"),
        ("x", {"logit_bias": {10**6: 0.0}}, ValueError, "logit_bias: expected an integer from 0 to"),
        ("x", {"logit_bias": {1: float("nan")}}, ValueError, "logit_bias"),
        ("x", {"seed": -1}, ValueError, "seed"),
        ("x", {"seed": 2**64}, ValueError, "seed"),
        ("x", {"stop": ""}, ValueError, "stop: expected strings that are not empty"),
        ("x", {"stop": 5}, TypeError, "stop"),
        ("x", {"stop": ["a", 5]}, TypeError, "stop"),
        ("x", {"logprobs": -1}, ValueError, "logprobs"),
        ("x", {"logprobs": True}, TypeError, "logprobs"),
        ("x", {"ignore_eos": 1}, TypeError, "ignore_eos: expected True or False"),
        ("x", {"context_shift": "yes"}, TypeError, "context_shift"),
        ("x", {"n_keep": -1}, ValueError, "n_keep"),
        ("x", {"max_tokens": 5}, TypeError, "unknown argument 'max_tokens'; known are .*max_new_tokens"),
        ("x", {"grammar": 5}, TypeError, "grammar: expected a string"),
        ("x", {"grammar": "a", "regex": "b"}, ValueError, "grammar: expected one constraint, found grammar and regex"),
        ("x", {"prompt_cache": 5}, TypeError, "prompt_cache: expected a path, found int"),
    ],
)
def test_wrong_arguments_are_named(make_engine, prompt, options, error, message):
    engine = make_engine()
    with pytest.raises(error, match=message):
        engine.generate(prompt, **options)
    if not isinstance(prompt, list) or isinstance(prompt[:1], str):
        with pytest.raises(error, match=message):
            engine.generate(prompt, stream=True, **options)
        with pytest.raises(error, match=message):
            engine.submit(prompt, **options)
    assert not engine.decoder.passes


def test_wrong_ids_for_evaluation(make_engine):
    engine = make_engine(context_length=8)
    for call in (engine.logits, engine.log_probabilities):
        with pytest.raises(ValueError, match="ids: expected at least one token"):
            call([])
        with pytest.raises(ValueError, match="ids: 9 tokens are more than the context has, 8"):
            call([0] * 9)
        with pytest.raises(TypeError, match="ids: expected a list of token ids, found 'x'"):
            call("x")


@pytest.mark.parametrize(
    ("messages", "error"),
    [("Hello", TypeError), ([], ValueError), (["Hello"], TypeError), ([{"content": "x"}], TypeError), (5, TypeError)],
)
def test_wrong_messages(make_engine, messages, error):
    with pytest.raises(error, match="messages: expected"):
        make_engine().chat(messages)


def test_without_a_template_there_is_no_chat(make_engine):
    engine = make_engine()
    engine._chat_template = None
    with pytest.raises(ValueError, match="the model has no chat template"):
        engine.chat([{"role": "user", "content": "x"}])


def test_an_engine_is_closed_once_and_for_all(make_engine):
    with make_engine() as engine:
        stream = engine.generate(PROMPT, stream=True, max_new_tokens=100, **WARM)
        next(stream)
        request = engine.submit(PROMPT, max_new_tokens=100, **WARM)
    assert not engine.decoder.sequences
    assert [chunk.finish_reason for chunk in stream][-1] == "cancelled"
    assert request.result().finish_reason == "cancelled"
    engine.close()
    for call in (engine.generate, engine.submit, engine.logits):
        with pytest.raises(RuntimeError, match="closed"):
            call([1, 2])


def test_options_know_every_argument():
    assert Options.of(seed=3, stop="x").sampling.seed == 3
    assert Options.of(stop="x").stop == ("x",)


def test_numpy_numbers_are_numbers(make_engine):
    engine = make_engine()
    plain = engine.generate([1, 2, 3], max_new_tokens=4, temperature=0.5, top_k=3)
    array = engine.generate(
        np.array([1, 2, 3]), max_new_tokens=np.int64(4), temperature=np.float32(0.5), top_k=np.uint8(3)
    )
    assert plain.token_ids == array.token_ids
