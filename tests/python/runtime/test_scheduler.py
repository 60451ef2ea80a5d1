"""Many texts at once: threads, cancellation, interrupts, a cache that is full, prompts that begin alike."""

import gc
import os
import random
import signal
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tmac.runtime.scheduler import QueueFullError

OPTIONS = {"temperature": 1.0, "ignore_eos": True, "max_new_tokens": 20}
LONG = list(range(3, 103))


def alone(make_engine, prompts, **options):
    """What each prompt gives on an engine of its own, with room for everything."""
    return [make_engine().generate(prompt, **{**OPTIONS, **options}).token_ids for prompt in prompts]


def prompts_of(count, seed=0):
    draw = random.Random(seed)
    return [[draw.randrange(200) for _ in range(draw.randrange(1, 80))] for _ in range(count)]


def idle(engine):
    """All that is left in the decoder are kept prompts."""
    return len(engine.decoder.sequences) == len(engine._passes.prefixes)


def test_32_requests_from_32_threads(make_engine):
    prompts = prompts_of(32)
    expected = alone(make_engine, prompts)
    engine, found, started = make_engine(), {}, threading.Event()
    submitted, forward = threading.Barrier(32, action=started.set), engine.decoder.forward

    def forward_of_all(*arguments, **options):
        assert started.wait(60)
        return forward(*arguments, **options)

    def work(number):
        request = engine.submit(prompts[number], **OPTIONS)
        submitted.wait(60)
        found[number] = [token for chunk in request for token in chunk.token_ids]

    engine.decoder.forward = forward_of_all
    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(32)] == expected
    assert idle(engine)
    assert max(len(rows) for phase, rows in engine.decoder.passes if phase == "decode") > 4


def test_generate_from_many_threads_while_the_main_one_generates(make_engine):
    prompts = prompts_of(12)
    expected = alone(make_engine, prompts)
    engine, found = make_engine(), {}

    def work(number):
        found[number] = engine.generate(prompts[number], **OPTIONS).token_ids

    stream = engine.generate(prompts[0], stream=True, **OPTIONS)
    found[0] = list(next(stream).token_ids)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(2, 12)]
    for thread in threads:
        thread.start()
    work(1)
    found[0] += [token for chunk in stream for token in chunk.token_ids]
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(12)] == expected


def test_evaluation_comes_between_the_passes_of_others(make_engine):
    engine = make_engine(context_length=4000)
    expected = engine.logits(LONG)
    engine.decoder.on_pass = lambda phase, rows: time.sleep(0.002)
    request = engine.submit([1], **{**OPTIONS, "max_new_tokens": None})
    next(request)
    for _ in range(5):
        before = len(engine.decoder.passes)
        assert (engine.logits(LONG) == expected).all()
        assert len(engine.decoder.passes) - before < 4 + 10  # its own four and hardly any others
    assert not request.done
    request.cancel()
    assert request.result().finish_reason == "cancelled"


def test_a_pass_has_rows_of_everyone(make_engine):
    engine = make_engine(chunk_size=32)
    engine.generate([[7] * 50, [8] * 50, [9]], **OPTIONS)
    prompts = [sum(rows) for phase, rows in engine.decoder.passes if phase == "prompt"]
    assert max(prompts) <= 32
    assert sum(prompts) == 101
    assert [rows for phase, rows in engine.decoder.passes if phase == "decode"].count([1, 1, 1]) == 16


def test_short_prompts_do_not_wait_for_long_ones(make_engine):
    engine = make_engine(chunk_size=32, context_length=5000)
    order = []
    prompts = [[5] * 2000, [6] * 10]
    for chunk in engine.generate(prompts, stream=True, **OPTIONS):
        order.append(chunk.index)
    assert order[0] == 1
    passes = [phase for phase, _ in engine.decoder.passes]
    assert passes[1] == "decode"  # after the first part of the long prompt the short text goes on


def test_the_queue_has_an_end(make_engine):
    engine = make_engine(engine={"max_batch": 2, "max_queue": 3}, context_length=5000)
    options = {**OPTIONS, "max_new_tokens": 4000}
    requests = [engine.submit([number + 1], **options) for number in range(5)]
    with pytest.raises(QueueFullError, match="5 requests run or wait"):
        engine.submit([9], **options)
    for request in requests:
        request.cancel()
    assert {request.result().finish_reason for request in requests} == {"cancelled"}
    assert engine.submit([1], **OPTIONS).result().finish_reason == "length"


def test_more_prompts_than_fit_into_a_pass_wait_for_their_turn(make_engine):
    prompts = prompts_of(20, seed=1)
    engine = make_engine(engine={"max_batch": 3, "max_queue": 0})
    assert [result.token_ids for result in engine.generate(prompts, **OPTIONS)] == alone(make_engine, prompts)


# Cancellation and interrupts.


def test_a_cancelled_request_ends_and_the_others_go_on(make_engine):
    engine = make_engine(context_length=5000)
    expected = engine.generate([2], **OPTIONS).token_ids
    first = engine.submit([1], **{**OPTIONS, "max_new_tokens": 4000})
    second = engine.submit([2], **OPTIONS)
    chunks = [next(first), next(first)]
    first.cancel()
    chunks += list(first)
    assert chunks[-1].finish_reason == "cancelled"
    assert second.result().token_ids == expected
    assert idle(engine)


def test_a_stream_that_is_closed_or_forgotten_releases_its_sequences(make_engine):
    engine = make_engine()
    with engine.generate([[1], [2]], stream=True, **OPTIONS) as stream:
        next(stream)
        assert len(engine.decoder.sequences) == 2
    assert not engine.decoder.sequences
    stream = engine.generate([1], stream=True, **OPTIONS)
    next(stream)
    del stream
    gc.collect()
    assert engine.generate([3], **OPTIONS).finish_reason == "length"
    assert not engine.decoder.sequences
    request = engine.submit([1], **{**OPTIONS, "max_new_tokens": None})
    del request
    gc.collect()
    engine.submit([2], **OPTIONS).result()
    wait_until(lambda: not engine.decoder.sequences)


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("at", [1, 2, 5])
@pytest.mark.parametrize("stream", [False, True])
def test_an_interrupted_pass_leaves_the_engine_usable(make_engine, at, stream):
    engine = make_engine()
    expected = alone(make_engine, [LONG, [1]])
    passes = 0

    def interrupt(phase, rows):
        nonlocal passes
        passes += 1
        if passes == at:
            raise KeyboardInterrupt

    engine.decoder.on_pass = interrupt
    with pytest.raises(KeyboardInterrupt):
        list(engine.generate([LONG, [1]], stream=stream, **OPTIONS))
    assert idle(engine)
    assert [result.token_ids for result in engine.generate([LONG, [1]], **OPTIONS)] == expected


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("hook", ["on_pass", "after_pass"])
def test_another_stream_goes_on_after_an_interrupt(make_engine, hook, window):
    engine = make_engine(window=window)
    expected = alone(make_engine, [[1], LONG])[0]
    other = engine.generate([1], stream=True, **OPTIONS)
    found = list(next(other).token_ids)

    def interrupt(phase, rows):
        if phase == "decode" and rows == 2:
            setattr(engine.decoder, hook, None)
            raise KeyboardInterrupt

    setattr(engine.decoder, hook, interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(LONG, **OPTIONS)
    found += [token for chunk in other for token in chunk.token_ids]
    assert found == expected


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to itself")
def test_ctrl_c_waits_for_the_bookkeeping_and_not_for_the_pass(make_engine, tokenizer):
    places = []

    class Interrupting(type(tokenizer)):
        armed = False

        def decode(self, ids, skip_special_tokens=True):
            if Interrupting.armed:
                Interrupting.armed = False
                signal.raise_signal(signal.SIGINT)
                places.append("after the signal in the bookkeeping")
            return super().decode(ids, skip_special_tokens)

    engine = make_engine(tokenizer=Interrupting(tokenizer.inner))
    expected = alone(make_engine, [LONG])[0]
    other = engine.generate(LONG, stream=True, **OPTIONS)
    found = list(next(other).token_ids)
    before = signal.getsignal(signal.SIGINT)

    def arm(phase, rows):
        Interrupting.armed = True

    engine.decoder.on_pass = arm
    with pytest.raises(KeyboardInterrupt):
        engine.generate([1], **OPTIONS)
    assert places == ["after the signal in the bookkeeping"]
    assert signal.getsignal(signal.SIGINT) is before

    def interrupt(phase, rows):
        engine.decoder.on_pass = None
        signal.raise_signal(signal.SIGINT)
        places.append("after the signal in the pass")

    engine.decoder.on_pass = interrupt
    with pytest.raises(KeyboardInterrupt):
        engine.generate([1], **OPTIONS)
    assert len(places) == 1
    found += [token for chunk in other for token in chunk.token_ids]
    assert found == expected
    assert idle(engine)


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to itself")
def test_ctrl_c_reaches_the_main_thread_while_it_waits_for_another(make_engine):
    engine = make_engine(context_length=5000)
    request = engine.submit([1], **{**OPTIONS, "max_new_tokens": 4000})
    next(request)
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        engine.generate([2], **{**OPTIONS, "max_new_tokens": None})
    timer.join()
    assert not request.done
    request.cancel()
    request.result()
    wait_until(lambda: idle(engine))


def test_an_error_of_a_pass_ends_its_texts_and_nothing_else(make_engine):
    engine = make_engine()

    def broken(phase, rows):
        engine.decoder.on_pass = None
        raise OSError("no such page")

    engine.decoder.on_pass = broken
    with pytest.raises(OSError, match="no such page"):
        engine.generate(LONG, **OPTIONS)
    assert not engine.decoder.sequences
    assert [engine.generate(LONG, **OPTIONS).token_ids] == alone(make_engine, [LONG])


def test_callbacks_get_every_chunk_and_may_fail(make_engine):
    engine = make_engine()
    chunks = []
    request = engine.submit([1], on_chunk=chunks.append, **OPTIONS)
    result = request.result()
    assert "".join(chunk.text for chunk in chunks) == result.text

    def failing(chunk):
        raise ZeroDivisionError

    request = engine.submit([1], on_chunk=failing, **OPTIONS)
    with pytest.raises(ZeroDivisionError):
        request.result()
    assert engine.submit([1], **OPTIONS).result().text == result.text


def test_the_thread_ends_with_its_engine(make_engine, monkeypatch):
    engine = make_engine()
    engine.submit([1], **OPTIONS).result()
    thread = engine._scheduler._thread
    engine.close()
    assert not thread.is_alive()
    monkeypatch.setattr("tmac.runtime.scheduler.IDLE_SECONDS", 0.0)
    engine = make_engine()
    engine.submit([1], **OPTIONS).result()
    wait_until(lambda: engine._scheduler._thread is None)
    assert engine.submit([1], **OPTIONS).result().finish_reason == "length"


# A cache that is full.


@given(
    st.integers(0, 5),
    st.sampled_from([60, 100, 160, 240]),
    st.sampled_from([5, 16, 64]),
    st.integers(1, 8),
    st.sampled_from([0, 24]),
)
@settings(max_examples=25)
def test_a_full_cache_changes_no_text(make_engine, seed, room, chunk_size, count, window):
    prompts = [prompt[:30] for prompt in prompts_of(count, seed)]
    engine = make_engine(max_positions=room, chunk_size=chunk_size, window=window)
    results = engine.generate(prompts, **OPTIONS)
    assert [result.token_ids for result in results] == alone(make_engine, prompts)
    assert idle(engine)


def test_a_text_that_fills_the_cache_alone_ends(make_engine):
    engine = make_engine(max_positions=40)
    result = engine.generate([1, 2], **{**OPTIONS, "max_new_tokens": 100})
    assert (len(result.token_ids), result.finish_reason) == (39, "length")


def test_a_prompt_that_does_not_fit_is_an_error_and_others_go_on(make_engine):
    engine = make_engine(max_positions=40)
    first, second, third = [engine.submit(prompt, **OPTIONS) for prompt in ([1], LONG, [2])]
    assert [first.result().token_ids, third.result().token_ids] == alone(make_engine, [[1], [2]])
    with pytest.raises(ValueError, match="prompt: its 100 tokens do not fit into the cache: the cache is full"):
        second.result()
    assert idle(engine)


def test_shifting_while_others_wait_for_room(make_engine):
    engine = make_engine(max_positions=48, context_length=32, eos=False)
    options = {"max_new_tokens": 70, "context_shift": True}
    expected = make_engine(context_length=32, eos=False).generate([1, 2, 3], **options).token_ids
    results = engine.generate([[1, 2, 3]] * 4, **options)
    assert [result.token_ids for result in results] == [expected] * 4


def test_evaluation_takes_the_room_of_kept_prompts(make_engine):
    engine = make_engine(max_positions=120)
    engine.generate(LONG, **OPTIONS)
    assert len(engine._passes.prefixes) == 1
    engine.logits([5] * 100)
    assert not engine.decoder.sequences


# Prompts that begin alike.


def evaluated(engine):
    return sum(sum(rows) for phase, rows in engine.decoder.passes if phase == "prompt")


def test_a_finished_prompt_is_reused_and_the_last_token_evaluated(make_engine):
    engine = make_engine()
    first = engine.generate(LONG, **OPTIONS)
    again = engine.generate(LONG, **OPTIONS)
    assert again.token_ids == first.token_ids
    assert (first.timings.reused_tokens, again.timings.reused_tokens) == (0, 99)
    assert evaluated(engine) == 101
    longer = LONG + first.token_ids + [7, 8]
    result = engine.generate(longer, **OPTIONS)
    assert [result.token_ids] == alone(make_engine, [longer])
    assert result.timings.reused_tokens == 100  # generated rows are evaluated again: as a prompt they have other bits
    engine.drop_prompts()
    assert not engine.decoder.sequences


def test_a_running_prompt_is_shared_with_those_that_come_with_it(make_engine):
    prompts = [[*LONG, number] for number in range(8)]
    engine = make_engine(chunk_size=16)
    results = engine.generate(prompts, **OPTIONS)
    assert [result.token_ids for result in results] == alone(make_engine, prompts)
    assert evaluated(engine) == 101 + 7 * 5  # they start at row 96: the next pass would bring less than is worth a wait


def test_short_beginnings_are_not_shared(make_engine):
    engine = make_engine()
    prompts = [[1, 2, 3, 4], [1, 2, 3, 5]]
    assert [result.timings.reused_tokens for result in engine.generate(prompts, **OPTIONS)] == [0, 0]


def test_with_windows_the_prompt_is_kept_when_it_is_done(make_engine):
    engine = make_engine(window=8)
    first = engine.generate(LONG, **OPTIONS)
    again = engine.generate([*LONG, 5], **OPTIONS)
    assert [again.token_ids] == alone(make_engine, [[*LONG, 5]])
    assert (first.timings.reused_tokens, again.timings.reused_tokens) == (0, 100)
    other = engine.generate([*LONG[:50], 5], **OPTIONS)  # a window has forgotten what this needs
    assert [other.token_ids] == alone(make_engine, [[*LONG[:50], 5]])
    assert other.timings.reused_tokens == 0


def test_kept_prompts_have_a_limit(make_engine):
    engine = make_engine(engine={"kept_positions": 150})
    for first in range(5):
        engine.generate([first, *LONG[:60]], **OPTIONS)
    assert len(engine._passes.prefixes) == 2
    assert engine.generate([4, *LONG[:60]], **OPTIONS).timings.reused_tokens == 60
    assert engine.generate([0, *LONG[:60]], **OPTIONS).timings.reused_tokens == 0


def test_a_prompt_replaces_the_one_that_it_goes_on_from(make_engine):
    engine = make_engine()
    for length in (30, 60, 90):
        engine.generate(LONG[:length], **OPTIONS)
    assert len(engine._passes.prefixes) == 1
    assert engine.generate(LONG[:40], **OPTIONS).timings.reused_tokens == 39


@pytest.mark.parametrize("kind", ["ntk", "longrope"])
def test_rows_whose_positions_depend_on_the_length_are_shared_by_equal_ones_only(make_engine, kind):
    dynamic = {"kind": kind, "original": 50}
    model = {"rope": [{"dynamic": None}, {"dynamic": dynamic}]}
    prompts = [LONG[:40], LONG[:48], LONG[:60], LONG[:61], LONG[:61]]
    expected = [make_engine(model=model).generate(prompt, **OPTIONS).token_ids for prompt in prompts]
    engine = make_engine(model=model)
    results = [engine.generate(prompt, **OPTIONS) for prompt in prompts]
    assert [result.token_ids for result in results] != alone(make_engine, prompts)  # the lengths reach the decoder
    assert [result.timings.reused_tokens for result in results] == [0, 40, 0, 0 if kind == "ntk" else 60, 60]
    if kind == "longrope":
        return  # the fake's rows depend on the length itself
    assert [result.token_ids for result in results][2:] == expected[2:]
