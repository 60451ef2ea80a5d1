"""What the server is told once, when it starts."""

from __future__ import annotations

from dataclasses import dataclass

MOST_LOGPROBS = 20
MOST_CHOICES = 128


@dataclass(frozen=True)
class Settings:
    """Names and limits of a server.

    Args:
        model_name: what clients ask for.
        api_key: what they show as `Authorization: Bearer KEY`; None: nothing is asked.
        max_requests: texts that are generated at a time.
        max_queued: texts that wait; one more is answered with 429.
        max_tokens: ceiling of a text's tokens; None: the context.
        max_body_bytes: of a request.
        request_timeout: seconds from a request's arrival to the end of its answer.
        body_timeout: seconds for a request's body to arrive.
        ping_seconds: a stream without text for so long gets a comment, which keeps proxies from closing it.
        cors_origins: web pages of these origins may ask; "*": all.
        hosts: names that a request's `Host` may have; None: any.
    """

    model_name: str
    api_key: str | None = None
    max_requests: int = 32
    max_queued: int = 128
    max_tokens: int | None = None
    max_body_bytes: int = 4 << 20
    request_timeout: float = 600.0
    body_timeout: float = 30.0
    ping_seconds: float = 15.0
    cors_origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = None
