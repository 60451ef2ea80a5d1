"""Whether two models speak of the same tokens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tmac.runtime.loading import EngineParts


def check_vocabulary(target: EngineParts, draft: EngineParts, name: str) -> None:
    """Every token of one is the same token of the other; logits may be padded to different lengths.

    Args:
        target: parts of the target.
        draft: of the draft.
        name: of the argument, for messages.

    Raises:
        ValueError: they differ; the message names the first token that does.
    """
    ours = _tokens(target.tokenizer, "target", name)
    others = _tokens(draft.tokenizer, "draft", name)
    for index in sorted(ours.keys() | others.keys()):
        if ours.get(index) != others.get(index):
            raise ValueError(
                f"{name}: expected the vocabulary of the target, but token {index} is {_shown(ours.get(index))} there "
                f"and {_shown(others.get(index))} in the draft"
            )


def _tokens(tokenizer: Any, whose: str, name: str) -> dict[int, str]:
    """Token id -> its string."""
    try:
        content: dict[str, Any] = json.loads(tokenizer.to_json())
    except ValueError as error:
        raise ValueError(f"{name}: expected the {whose} to have a tokenizer ({error})") from error
    vocabulary = content.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, dict):
        found = {int(index): token for token, index in vocabulary.items()}
    else:  # of a unigram model, pairs of token and score
        found = {index: str(pair[0]) for index, pair in enumerate(vocabulary)}
    for added in content.get("added_tokens", ()):
        found[int(added["id"])] = added["content"]
    return found


def _shown(token: str | None) -> str:
    return "missing" if token is None else repr(token)
