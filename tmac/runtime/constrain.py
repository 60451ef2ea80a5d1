"""Texts of a given form: masks of the tokens that may come next, by llguidance (https://github.com/guidance-ai)."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from tmac.runtime.arguments import shown
from tmac.runtime.generate import Options
from tmac.runtime.native import Tokenizer, Words


def guidance() -> Any:
    """The module llguidance. Raises ImportError naming the extra where it is not installed."""
    try:
        import llguidance
    except ModuleNotFoundError as error:
        if error.name != "llguidance":
            raise
        message = "json_schema, grammar and regex need llguidance: pip install 'tmac-cpu[constrained]'"
        raise ImportError(message, name="llguidance") from error
    return llguidance


class Grammars:
    """The constraints of one tokenizer, from any thread.

    Args:
        tokenizer: of the model.
        vocab_size: logits of a row; ids that the tokenizer has not are never allowed.
        eos_ids: tokens that may follow a complete text.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Set[int]) -> None:
        self._tokenizer, self._vocab_size, self._eos_ids = tokenizer, vocab_size, sorted(eos_ids)
        self._lock = threading.Lock()
        self._prepared: Any = None

    def constraint(self, options: Options) -> Guidance | None:
        """What `json_schema`, `grammar` or `regex` asks for, None if there is none of them.

        Raises:
            ImportError: llguidance is not installed.
            ValueError: the argument is no schema, grammar or regular expression, or too large a one.
        """
        for name, grammar_of in (("json_schema", json_grammar), ("grammar", text_grammar), ("regex", regex_grammar)):
            value = getattr(options, name)
            if value is not None:
                module = guidance()
                matcher = module.LLMatcher(self._tokens(module), grammar_of(module, value), log_level=0)
                if matcher.is_error():
                    raise ValueError(f"{name}: {_first_lines(matcher.get_error())}")
                return Guidance(matcher, self._vocab_size)
        return None

    def _tokens(self, module: Any) -> Any:
        """The tokenizer as llguidance wants it, prepared once."""
        with self._lock:
            if self._prepared is None:
                if not self._eos_ids:
                    raise ValueError("json_schema, grammar and regex need a model with an end-of-text token")
                text = self._tokenizer.to_json()
                self._prepared = module.LLTokenizer(text, n_vocab=self._vocab_size, eos_token=self._eos_ids)
            return self._prepared


class Guidance:
    """A text that is being written under a constraint."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._mask = np.zeros(-(-vocab_size // 32), np.uint32)

    def mask(self) -> Words:
        """The tokens that may come next, bit i % 32 of word i // 32. The array is used again.

        Raises:
            ValueError: the grammar became too complex.
        """
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        return self._mask

    def accept(self, token: int) -> None:
        """The token that came. Raises ValueError for one that the mask forbade."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing can follow."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(f"[generate] the constraint: {_first_lines(self._matcher.get_error())}")


def json_grammar(module: Any, schema: Any) -> str:
    """llguidance's form of a JSON schema: a dictionary, true, false or JSON text of these."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except json.JSONDecodeError as error:
            raise ValueError(f"json_schema: expected a schema or its JSON, but {error}") from None
    if not isinstance(schema, (Mapping, bool)):
        raise TypeError(f"json_schema: expected a dictionary, found {shown(schema)}")
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError) as error:
        raise ValueError(f"json_schema: {error}") from None
    return str(module.LLMatcher.grammar_from_json_schema(text))


def text_grammar(module: Any, text: str) -> str:
    """llguidance's form of a grammar: Lark, GBNF, or JSON that is llguidance's own."""
    if text.lstrip().startswith("{"):
        return text
    try:
        return str(module.grammar_from("grammar", text))
    except ValueError as error:
        raise ValueError(f"grammar: {_first_lines(str(error))}") from None


def regex_grammar(module: Any, text: str) -> str:
    """llguidance's form of a regular expression."""
    return str(module.LLMatcher.grammar_from_regex(text))


def _first_lines(message: str) -> str:
    """What is wrong, without the state of the parser that may follow."""
    lines = [line.strip() for line in message.partition("<state>")[0].splitlines()]
    return " ".join(line for line in lines if line)[:400]
