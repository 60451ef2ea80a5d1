"""generate() with the native decoder against generate() without it."""

import copy
import threading

import pytest
import torch
import transformers
from families import SIZES
from native_models import FAMILIES, IDS, NATIVE, Recorder, agreement, assert_same_text, low
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

import tmac
from tmac import _core

NO_END = {"min_new_tokens": 24}


def same(model, ids, **options):
    """Both ways give the same ids."""
    got, want = assert_same_text(model, ids, **options)
    assert torch.equal(got.sequences, want.sequences)
    return got.sequences


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_of_every_family(family):
    """Past the window, where there is one; two sequences in a batch."""
    assert_same_text(low(family), IDS, **NO_END)


@pytest.mark.parametrize("family", FAMILIES)
def test_float_models_decode_too(family):
    assert_same_text(low(family, quantize=False), IDS, **NO_END)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_used_as_they_are(dtype):
    """transformers rounds what passes from layer to layer: so the text is compared with that of the widened weights."""
    model = low("Qwen2", quantize=False).to(dtype)
    wide = copy.deepcopy(model).float()
    got = model.generate(IDS, do_sample=False, max_new_tokens=12, **NATIVE)
    assert torch.equal(got, wide.generate(IDS, do_sample=False, max_new_tokens=12))


@pytest.mark.parametrize("family", FAMILIES)
def test_rounded_activations(family):
    """Both ways round the same numbers in the same way; a cache of eight bits shows what another way would do."""
    model = low(family, activation="group")
    tmac.attach(model, cache_type="f32")
    assert agreement(model) > 0.5
    tmac.attach(model, cache_type="int8")
    assert agreement(model) < 0.5
    assert agreement(low(family)) == 1  # nothing is rounded


def test_processors():
    model = low()
    plain = same(model, IDS, min_new_tokens=24)
    banned = plain[0, 16:20].tolist()
    for options in (
        {"repetition_penalty": 5.0},
        {"bad_words_ids": [[token] for token in banned], "no_repeat_ngram_size": 2},
        {"forced_eos_token_id": 2, "suppress_tokens": banned},
        {"sequence_bias": {(banned[0],): -30.0}},
    ):
        assert not torch.equal(same(model, IDS, **options), plain), options


def test_a_processor_of_ones_own_sees_what_transformers_shows_it():
    seen = []

    def watch(ids, scores):
        seen.append((ids.clone(), scores.dtype, scores.shape))
        scores[:, 5] = 1e9
        return scores

    model = low()
    ids = model.generate(IDS, logits_processor=[watch], max_new_tokens=3, do_sample=False, **NATIVE)
    assert ids[:, 16:].eq(5).all()
    assert [each[0].shape[1] for each in seen] == [16, 17, 18]
    assert torch.equal(seen[2][0], ids[:, :18])
    assert {each[1:] for each in seen} == {(torch.float32, torch.Size([2, 96]))}


class _After(StoppingCriteria):
    """Ends each sequence after a number of columns of its own."""

    def __init__(self, columns):
        self.columns = torch.tensor(columns)

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids.shape[1] >= self.columns


def test_sequences_end_by_themselves_and_are_filled_up():
    model = low()
    first = model.generate(IDS, do_sample=False, max_new_tokens=12, min_new_tokens=12, **NATIVE)
    ends = [int(first[0, 18]), int(first[1, 24])]
    ids = model.generate(IDS, do_sample=False, max_new_tokens=12, eos_token_id=ends, pad_token_id=0)
    assert torch.equal(
        model.generate(IDS, do_sample=False, max_new_tokens=12, eos_token_id=ends, pad_token_id=0, **NATIVE), ids
    )
    assert ids[0, 19:].eq(0).all()  # it has ended before the other
    assert ids.shape[1] > 19
    same(model, IDS, eos_token_id=ends, pad_token_id=0)  # with scores, which are wanted of those that have ended, too


def test_stopping_criteria():
    model = low()
    assert same(model, IDS, stopping_criteria=StoppingCriteriaList([_After([19, 23])]), **NO_END).shape == (2, 23)
    assert model.generate(IDS, max_time=0.0, max_new_tokens=50, do_sample=False, **NATIVE).shape == (2, 17)
    assert model.generate(IDS, max_length=20, do_sample=False, **NATIVE).shape[1] <= 20


def test_no_work_for_sequences_that_have_ended(monkeypatch):
    rows = []
    attachment = tmac.hf.native_attachment.current_attachment(model := low())
    forward = attachment.forward
    monkeypatch.setattr(attachment, "forward", lambda *a: rows.append((a[2], len(a[0]))) or forward(*a))
    stop = StoppingCriteriaList([_After([18, 20])])
    model.generate(IDS, stopping_criteria=stop, max_new_tokens=24, do_sample=False, **NO_END, **NATIVE)
    assert rows == [("prompt", 2), ("decode", 2), ("decode", 1), ("decode", 1)]


def test_streamers():
    model = low()
    ours, theirs = Recorder(), Recorder()
    model.generate(IDS[:1], streamer=ours, max_new_tokens=8, do_sample=False, **NATIVE)
    model.generate(IDS[:1], streamer=theirs, max_new_tokens=8, do_sample=False)
    assert ours.pieces == theirs.pieces
    assert (len(ours.pieces), ours.ended) == (9, 1)


def test_text_streams_from_a_thread():
    class Words:
        def decode(self, ids, **options):
            return "".join(f"w{int(each)} " for each in ids)

    model = low()
    streamer = TextIteratorStreamer(Words(), skip_prompt=True, timeout=60)
    options = {"streamer": streamer, "max_new_tokens": 8, "do_sample": False, **NATIVE}
    thread = threading.Thread(target=model.generate, args=(IDS[:1],), kwargs=options)
    thread.start()
    words = "".join(streamer).split()
    thread.join()
    assert words == [f"w{each}" for each in model.generate(IDS[:1], max_new_tokens=8, do_sample=False)[0, 16:].tolist()]


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Gemma3Text", "GPTNeoX"])
def test_padded_batches(family):
    ids, mask = IDS.clone(), torch.ones_like(IDS)
    ids[0, :7], mask[0, :7] = 0, 0
    model = low(family)
    got, _ = assert_same_text(model, ids, attention_mask=mask, **NO_END)
    alone = model.generate(ids[:1, 7:], do_sample=False, max_new_tokens=24, **NO_END, **NATIVE)
    assert torch.equal(got.sequences[:1, 7:], alone)
    inferred = model.generate(ids, do_sample=False, max_new_tokens=24, pad_token_id=0, **NO_END, **NATIVE)
    assert torch.equal(inferred, got.sequences)


def test_holes_in_a_mask():
    mask = torch.ones_like(IDS)
    mask[1, 3:5] = 0
    assert_same_text(low(), IDS, attention_mask=mask)
    with pytest.raises(ValueError, match="leaves out ids between others"):
        low("Mistral").generate(IDS, attention_mask=mask, max_new_tokens=3, **NATIVE)
    mask[0, -1] = 0
    with pytest.raises(ValueError, match="padding must be on the left"):
        low().generate(IDS, attention_mask=mask, max_new_tokens=3, **NATIVE)


@pytest.mark.parametrize("options", [{}, {"top_k": 5, "temperature": 0.7}, {"top_p": 0.8, "min_p": 0.01}])
def test_sampling_draws_what_transformers_draws(options):
    model = low("Qwen3")
    options = {"do_sample": True, "max_new_tokens": 16, "num_return_sequences": 3, **options}
    texts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        want = model.generate(IDS, **options)
        torch.manual_seed(seed)
        got = model.generate(IDS, **options, **NATIVE)
        assert torch.equal(got, want)
        texts.append(got)
    assert texts[0].shape[0] == 6
    assert not torch.equal(*[text[:, :32] for text in texts])


def test_sampling_goes_on_alike_where_a_sequence_has_ended():
    model = low()
    options = {"do_sample": True, "max_new_tokens": 10, "eos_token_id": list(range(3, 50)), "pad_token_id": 0}
    torch.manual_seed(5)
    want = model.generate(IDS.repeat(3, 1), **options)
    torch.manual_seed(5)
    assert torch.equal(model.generate(IDS.repeat(3, 1), **options, **NATIVE), want)
    assert len({int(each) for each in want.eq(0).sum(-1)}) > 1  # they have ended at different steps


def test_prompts_are_read_in_passes(monkeypatch):
    attachment = tmac.hf.native_attachment.current_attachment(model := low())
    forward, sizes = attachment.forward, []
    monkeypatch.setattr(attachment, "forward", lambda *a: sizes.append([len(each) for each in a[1]]) or forward(*a))
    want = model.generate(IDS, do_sample=False, max_new_tokens=2, **NATIVE)
    assert torch.equal(model.generate(IDS, do_sample=False, max_new_tokens=2, prefill_chunk_size=10, **NATIVE), want)
    assert sizes == [[16, 16], [1, 1], [10], [6, 4], [10], [2], [1, 1]]


def test_what_is_given_back():
    model = low()
    options = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, **NATIVE}
    out = model.generate(IDS, output_scores=True, output_logits=True, repetition_penalty=2.0, **options)
    assert type(out) is transformers.generation.GenerateDecoderOnlyOutput
    assert len(out.scores) == len(out.logits) == 3
    assert not torch.equal(out.scores[0], out.logits[0])
    bare = model.generate(IDS, **options)
    assert (bare.scores, bare.logits, bare.attentions, bare.hidden_states) == (None, None, None, None)
    assert bare.past_key_values.get_seq_length() == 18
    assert model.generate(IDS, use_cache=False, **options).past_key_values is None


REFUSED = [
    ({"num_beams": 2}, "beam search"),
    ({"num_beams": 2, "do_sample": True}, "beam sample"),
    ({"prompt_lookup_num_tokens": 2}, "assisted generation"),
    ({"assistant_model": None}, "assisted generation"),  # the model itself
    ({"return_dict_in_generate": True, "output_attentions": True}, "output_attentions"),
    ({"return_dict_in_generate": True, "output_hidden_states": True}, "output_hidden_states"),
    ({"position_ids": torch.arange(16)[None] + 1}, "position_ids"),
    ({"synced_gpus": True}, "synced_gpus"),
    ({"past_key_values": "dynamic"}, "DynamicCache, but expected a tmac.hf.NativeCache"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_cannot_be_is_refused(options, message):
    model = low()
    if "assistant_model" in options:
        options = {"assistant_model": model}
    if options.get("past_key_values") == "dynamic":
        options = {"past_key_values": transformers.DynamicCache(config=model.config)}
    with pytest.raises(ValueError, match=message):
        model.generate(IDS, **{"max_new_tokens": 3, "do_sample": False, **options}, **NATIVE)


def test_inputs_that_are_refused():
    model = low()
    with pytest.raises(ValueError, match="inputs_embeds"):
        model.generate(inputs_embeds=torch.zeros(1, 3, 64), max_new_tokens=3, **NATIVE)
    for wrong in (96, -1, 1 << 40):
        ids = IDS.clone()
        ids[1, 4] = wrong
        with pytest.raises(ValueError, match="but the model has 96"):
            model.generate(ids, max_new_tokens=3, **NATIVE)
    mask = torch.ones_like(IDS)
    mask[1] = 0
    with pytest.raises(ValueError, match="a sequence is empty"):
        model.generate(IDS, attention_mask=mask, max_new_tokens=3, **NATIVE)


def test_sequences_are_freed():
    """Also where the loop is left in the middle."""
    model = low()
    decoder = tmac.hf.native_attachment.current_attachment(model).decoder
    assert decoder.cache_bytes == 0
    out = model.generate(IDS, max_new_tokens=3, return_dict_in_generate=True, **NATIVE)
    assert decoder.cache_bytes > 0
    del out
    assert decoder.cache_bytes == 0

    def fail(ids, scores):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate(IDS, max_new_tokens=3, logits_processor=[fail], **NATIVE)
    assert decoder.cache_bytes == 0
    with pytest.raises(ValueError, match="sequence"):
        decoder.length(1)
    assert isinstance(decoder, _core.Decoder)


def test_two_threads_at_once():
    model = low()
    want = [model.generate(IDS[i : i + 1], do_sample=False, max_new_tokens=24, **NO_END) for i in range(2)]
    got = [None, None]

    def work(i):
        got[i] = model.generate(IDS[i : i + 1], do_sample=False, max_new_tokens=24, **NO_END, **NATIVE)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_the_text_part_of_a_model_that_sees_pictures():
    text = {**SIZES, "head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 24, "num_hidden_layers": 4}
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 28, "patch_size": 14, "model_type": "siglip_vision_model"}
    tokens = {"boi_token_index": 90, "eoi_token_index": 91, "image_token_index": 92}
    torch.manual_seed(0)
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **tokens)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model = tmac.quantize_(model, tmac.QuantConfig(activation="float"))
    options = {"suppress_tokens": list(tokens.values()), **NO_END}
    got, _ = assert_same_text(model, IDS, **options)
    assert got.sequences.shape == (2, 40)
    with pytest.raises(ValueError, match="takes input_ids and attention_mask alone"):
        model.generate(IDS, pixel_values=torch.zeros(1, 3, 28, 28), max_new_tokens=24, **options, **NATIVE)


def test_pipelines():
    words = {f"w{index}": index for index in range(96)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w2")
    generator = transformers.pipeline("text-generation", model=low(), tokenizer=fast)
    config = transformers.GenerationConfig(do_sample=False, max_new_tokens=9, min_new_tokens=9, pad_token_id=0)
    texts = ["w5 w6", "w7 w8 w9 w10"]
    want = generator(texts, generation_config=config, batch_size=2)
    assert generator(texts, generation_config=config, batch_size=2, **NATIVE) == want
    assert generator.model in tmac.hf.native_attachment._ATTACHMENTS
