from dataclasses import dataclass


@dataclass(frozen=True)
class TokenLogprob:
    token_id: int
    logprob: float
    top: tuple = ()


@dataclass(frozen=True)
class Chunk:
    text: str
    token_ids: tuple
    logprobs: tuple | None = None
    finish_reason: str | None = None
    index: int = 0
    timings: object = None
    stop: str | None = None
