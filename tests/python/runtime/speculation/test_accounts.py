"""What the draft's reading of prompts, the disk and a full cache do to a text's statistics and to what is kept."""

from types import SimpleNamespace

import pytest
from drafts_for_tests import EagerController, TreeDraft
from runtime_models import SIZES, save_low, save_words
from streamed import open_streamed, streaming

from tmac.runtime.speculation.controller import Controller
from tmac.runtime.speculation.drafts import NoPasses
from tmac.runtime.speculation.planes import PlanesDraft
from tmac.runtime.speculation.rows import tree_runner
from tmac.runtime.speculation.speculator import Speculator, make_speculator

PROMPT = [5, 9, 33, 71, 12, 6, 7, 8, 44, 3] * 6


class Reader(NoPasses):
    """Reads a prompt in two seconds."""

    kind = "reader"
    name = "reader"
    separate = True

    def __init__(self):
        self.now, self.read = 0.0, []

    def open(self, seq):
        return self

    def prompt(self, tokens, end):
        self.read.append(end)
        self.now += 2.0


def reader(room, hits=(), generated=0, pipeline=False, there=True):
    """What a draft has read of a prompt, and the text, where its guesses were right so often in texts before."""
    draft, controller = Reader(), Controller(16)
    controller.passes.add(1, 0.1)
    for hit in hits:
        controller.acceptance.add_hit("reader", hit)
    draft.kind = "reader" if there else None
    speculator = Speculator(
        draft,
        run=None,
        keep=None,
        vocab_size=9,
        controller=controller,
        clock=lambda: draft.now,
        pipeline=pipeline,
    )
    task = SimpleNamespace(tokens=PROMPT, seq=0, speculation=None, generated=generated, room=room)
    tasks = type("Task", (), vars(task))()
    speculator.prompt(tasks, len(PROMPT) - 1)
    return draft.read, tasks.speculation


def test_reading_the_prompt_is_time_that_the_text_waits_for():
    read, stats = reader(room=100)
    assert read == [len(PROMPT) - 1]
    assert stats.draft_seconds == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("room", "generated", "reads"),
    [(1, 0, False), (2, 0, False), (3, 0, True), (1, 1, False), (2, 1, True)],
)
def test_nothing_is_read_for_a_text_that_ends_at_once(room, generated, reads):
    """Of n tokens the first follows the prompt, and the last one is never guessed for."""
    read, stats = reader(room, generated=generated)
    assert bool(read) == reads
    assert (stats.draft_seconds > 0) == reads


def test_nothing_is_read_where_guesses_were_wrong_in_texts_before():
    assert reader(100, hits=[False] * 100)[0] == []
    assert reader(100, hits=[True] * 100)[0] != []
    assert reader(100, hits=[False] * 100, there=False)[0] != [], "reading costs nothing without passes"


def test_steps_that_cost_no_time_need_fewer_right_guesses():
    hits = [True, False] * 50
    assert reader(100, hits=hits)[0] == []
    assert reader(100, hits=hits, pipeline=True)[0] != []


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMAC_CACHE_DIR", str(folder / "cache"))
        save_words(folder, [f"t{token}" for token in range(SIZES["vocab_size"])])
        yield save_low(folder)


@pytest.mark.parametrize("draft", ["ngram", "planes:2"])
def test_what_is_read_for_prompts_and_other_texts_is_not_counted(checkpoint, monkeypatch, draft):
    streaming(monkeypatch, planes=2 if draft == "planes:2" else None)
    options = {"ignore_eos": True, "max_new_tokens": 12}
    with open_streamed(checkpoint, draft=draft, num_threads=1, chunk_size=2, kept_positions=0) as engine:
        streamed = engine.streamed.plan.streamed
        engine.generate([PROMPT, PROMPT[::-1]], **options)
        for _ in range(2):
            stats = engine.generate(PROMPT, **options).speculation
            assert stats.passes * streamed == pytest.approx(stats.bytes_read, abs=2 * streamed)
            assert len(PROMPT) // 2 > 2 * stats.passes, "what its prompt reads would show"


def test_the_last_chunk_has_the_last_pass(make_engine):
    """At the time of its delivery, when the text ends with a plain pass."""
    seen, read = [], []

    def io():
        found = len(read), 100 * len(read)
        read.clear()
        return found

    engine = make_engine(after_pass=lambda phase, rows: read.append(phase))
    draft, controller = TreeDraft(lambda before: []), EagerController()
    engine._passes._speculator = make_speculator(engine.decoder, draft, controller, engine.vocab_size, 0, io)

    def look(chunk):
        if chunk.speculation is not None:
            seen.append(chunk.speculation.to_dict())

    result = engine.submit([5, 9, 33], on_chunk=look, max_new_tokens=2, ignore_eos=True).result()
    stats = result.speculation
    assert (stats.passes, stats.bytes_read, stats.io_seconds) == (1, 100, 1)
    assert (seen[0]["bytes_read"], seen[0]["io_seconds"]) == (100, 1)
    assert 0.0 < seen[0]["plain_seconds"] <= stats.plain_seconds


class Wide(EagerController):
    """Guesses as much as there is room for, and verifies so many guesses."""

    def __init__(self, most=15):
        super().__init__()
        self.most = most

    def start(self):
        text = super().start()
        text.choose = lambda tree, *, probe: tree.best()[: self.most]
        text.expands = lambda *_: True
        return text


@pytest.mark.parametrize("kept", [[], range(30)])
def test_a_tree_that_meets_a_full_cache_takes_the_room_of_kept_prompts(make_engine, kept):
    """A plain pass would still fit."""
    options = {"max_new_tokens": 5, "ignore_eos": True}
    prompt = [40, 41, 42]
    truth = prompt + make_engine().generate(prompt, **options).token_ids

    def guess(before):
        right = truth[len(before)] if before == truth[: len(before)] != truth else 7
        return [(token, 0.5) for token in {right, 1, 2, 3}]

    engine = make_engine(max_positions=len(kept) // 4 * 4 + 12)
    passes, draft = engine._passes, TreeDraft(guess)
    speculator = make_speculator(passes.decoder, draft, Wide(), engine.vocab_size, 0)
    passes._speculator = None
    if kept:
        engine.generate(list(kept), max_new_tokens=1, ignore_eos=True)
        assert len(passes.prefixes) == 1
    passes._speculator = speculator
    speculator.make_room = passes.make_room
    result = engine.generate(prompt, **options)
    assert result.token_ids == truth[3:]
    assert len(passes.prefixes) == 0
    assert (result.speculation.budgets[0] > 0) == bool(kept), "without a kept prompt there is no room to make"


def test_planes_over_the_same_cache_take_it_too(make_engine):
    """Their own rows do not fit, before anything is verified."""
    engine = make_engine(max_positions=28 + 12)
    passes = engine._passes
    engine.generate(list(range(30)), max_new_tokens=1, ignore_eos=True)
    kept = len(passes.prefixes)
    draft = PlanesDraft(tree_runner(passes.decoder), 4)
    passes._speculator = make_speculator(passes.decoder, draft, Wide(0), engine.vocab_size, 0)
    passes._speculator.make_room = passes.make_room
    stats = engine.generate([40, 41, 42], max_new_tokens=5, ignore_eos=True).speculation
    assert (kept, len(passes.prefixes), stats.error) == (1, 0, None)


def test_an_engine_makes_room_for_trees(make_engine):
    engine = make_engine()
    speculator = make_speculator(engine.decoder, TreeDraft(lambda before: []), None, engine.vocab_size, 0)
    passes = type(engine._passes)(engine.decoder, speculator=speculator)
    assert speculator.make_room == passes.make_room
