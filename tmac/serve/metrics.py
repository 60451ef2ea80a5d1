"""Counters as plain text, in Prometheus' exposition format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tmac.serve.slots import Slots


class Metrics:
    """What the server has done. Counted in the event loop alone."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.requests: Counter[tuple[str, int]] = Counter()  # (endpoint, status)
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.drafted_tokens = self.accepted_tokens = 0
        self.texts: Counter[str] = Counter()  # by finish_reason
        self.left = 0

    def render(self) -> str:
        """All of them."""
        lines: list[str] = []
        requests = ((f'{{endpoint="{path}",status="{status}"}}', n) for (path, status), n in self.requests.items())
        texts = ((f'{{finish_reason="{reason}"}}', count) for reason, count in self.texts.items())
        for name, kind, help_text, values in (
            ("tmac_requests_total", "counter", "answers by endpoint and status", requests),
            (
                "tmac_clients_left_total",
                "counter",
                "requests whose client left before the answer was complete",
                [("", self.left)],
            ),
            ("tmac_texts_total", "counter", "texts that have ended", texts),
            ("tmac_prompt_tokens_total", "counter", "tokens of prompts", [("", self.prompt_tokens)]),
            ("tmac_generated_tokens_total", "counter", "tokens that were generated", [("", self.generated_tokens)]),
            ("tmac_drafted_tokens_total", "counter", "guesses of the draft", [("", self.drafted_tokens)]),
            (
                "tmac_accepted_tokens_total",
                "counter",
                "guesses of the draft that were right",
                [("", self.accepted_tokens)],
            ),
            ("tmac_texts_running", "gauge", "texts that are being generated", [("", self._slots.running)]),
            ("tmac_texts_waiting", "gauge", "texts that wait for their turn", [("", self._slots.waiting)]),
        ):
            lines += _family(name, kind, help_text, values)
        return "\n".join(lines) + "\n"


def _family(name: str, kind: str, help_text: str, values: Iterable[tuple[str, int]]) -> list[str]:
    rows = [f"{name}{labels} {value}" for labels, value in sorted(values)]
    return [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}", *rows]
