"""The tables of models that fit in memory: what passes cost, how often drafts are right, how fast texts are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.speculative_runs.process import Measured, NoRowError
from benchmarks.speculative_runs.rows import AGREEMENT, MEMORY, PLAIN, VERIFY, Row, RunFile, timed_row
from benchmarks.speculative_runs.setting import MODEL, PASS_ROWS, Setting

Key = tuple[str, ...]
Rows = Iterator[Row]
PASS_RUNS = 41  # of passes that are timed, which are short


def opened(setting: Setting, weights: str, draft: str) -> Measured:
    """A process with a model in memory."""
    name = setting.engine_draft(draft)
    worker = Measured(None, setting.cache)
    try:
        path = str(setting.models[weights])
        worker.ask("open", path=path, draft=name, memory_limit=None, threads=setting.threads)
    except BaseException:
        worker.__exit__(None, None, None)
        raise
    return worker


def attempt(run: RunFile, keys: Sequence[Key], measure: Callable[[], Rows]) -> None:
    """Takes the rows in, or says why they are not there. Rows that the file has are not measured again."""
    if all(run.has(key) for key in keys):
        return
    try:
        for row in measure():
            print(row, flush=True)
            run.add(row)
    except (NoRowError, ValueError, RuntimeError, OSError) as why:
        for key in keys:
            if not run.has(key):
                print(f"not run: {' '.join(filter(None, key))}: {why}", flush=True)
                run.refuse(key, str(why))


def verify(setting: Setting, run: RunFile, weights: str) -> None:
    """What a pass over several tokens costs, in passes over one."""
    for draft in setting.drafts_of(VERIFY, weights):
        keys = [(VERIFY, weights, draft, str(count), "") for count in PASS_ROWS[1:]]
        attempt(run, keys, lambda draft=draft, keys=keys: _verify(setting, weights, draft, keys))  # type: ignore[misc]


def _verify(setting: Setting, weights: str, draft: str, keys: Sequence[Key]) -> Rows:
    with opened(setting, weights, draft) as worker:
        seconds = worker.ask("passes", rows=list(PASS_ROWS), runs=max(PASS_RUNS, setting.runs))
    for key in keys:
        yield timed_row(key, seconds["1"], seconds[key[3]], cost=True, samples_ms=ms(seconds[key[3]]))


def agreement(setting: Setting, run: RunFile, weights: str) -> None:
    """How often the likeliest token of a draft is the one that the target chooses."""
    texts: dict[str, dict[str, Any]] = {}
    for draft in setting.drafts_of(AGREEMENT, weights):
        keys = [(AGREEMENT, weights, draft, text, "") for text in setting.streamed_texts]
        attempt(run, keys, lambda draft=draft, keys=keys: _agreement(setting, draft, keys, texts))  # type: ignore[misc]


def _agreement(setting: Setting, draft: str, keys: Sequence[Key], texts: dict[str, dict[str, Any]]) -> Rows:
    weights, names = keys[0][1], [key[3] for key in keys]
    own = draft == MODEL
    if not texts or not own:
        with opened(setting, weights, PLAIN if own else draft) as worker:
            _write_texts(worker, setting, names, texts)
            found = {} if own else {name: worker.ask("agreement", **texts[name]) for name in names}
    if own:
        setting.engine_draft(draft)  # there is one
        with Measured(None, setting.cache) as worker:
            other = {"draft": None, "memory_limit": None, "threads": setting.threads}
            worker.ask("open", path=str(setting.draft_model), **other)
            found = {name: worker.ask("guesses", **texts[name]) for name in names}
    for key in keys:
        each = found[key[3]]
        table, weights, draft, text, disk = key
        share = float(each["share"])
        yield Row(table, weights, draft, text, disk, share, share, share, more={"tokens": each["tokens"]})


def _write_texts(worker: Measured, setting: Setting, names: Sequence[str], texts: dict[str, dict[str, Any]]) -> None:
    """Fills in prompts with what the target writes behind them, or checks that it writes the same."""
    for name in names:
        ids = worker.ask("encode", text=name)["ids"]
        answer = worker.ask("generate", text=name, tokens=setting.tokens, speculative=False)
        found = {"ids": [*ids, *answer["token_ids"]], "first": len(ids)}
        if texts.setdefault(name, found) != found:
            raise NoRowError(f"{name}: plain decoding gives other tokens than before")


def memory(setting: Setting, run: RunFile, weights: str) -> None:
    """Texts with and without a draft."""
    for draft in setting.drafts_of(MEMORY, weights):
        keys = [(MEMORY, weights, draft, text, "") for text in setting.texts]
        attempt(run, keys, lambda draft=draft, keys=keys: _memory(setting, weights, draft, keys))  # type: ignore[misc]


def _memory(setting: Setting, weights: str, draft: str, keys: Sequence[Key]) -> Rows:
    with opened(setting, weights, draft) as worker:
        for key in keys:
            request = {"texts": [key[3]], "tokens": setting.tokens, "runs": setting.runs}
            found = worker.ask("compare", **request, draft=True)[key[3]]
            seconds = ([1 / rate for rate in found[name]] for name in ("plain_samples_ts", "draft_samples_ts"))
            yield timed_row(key, *seconds, **about(found["speculation"]), tokens=found["tokens"])


def about(stats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the statistics of some runs say together."""
    drafted, accepted = (sum(sum(each[name]) for each in stats) for name in ("drafted", "accepted"))
    passes, tokens = (sum(each[name] for each in stats) for name in ("passes", "tokens"))
    errors = [each["error"] for each in stats if each["error"]]
    return {
        "tokens_per_pass": tokens / passes if passes else 0.0,
        "drafted": drafted,
        "accepted": accepted,
        **({"error": errors[-1]} if errors else {}),
    }


def ms(seconds: Sequence[float]) -> list[float]:
    return [1000 * each for each in seconds]
