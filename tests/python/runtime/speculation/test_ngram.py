"""Guesses from the text itself."""

import random

from hypothesis import given
from hypothesis import strategies as st

from tmac.runtime.speculation.ngram import LONGEST, NgramText
from tmac.runtime.speculation.tree import TokenTree


def guesses(tokens, path=()):
    """After a text, and a path behind it."""
    text = NgramText()
    text.sync(list(tokens))
    tree = TokenTree(tokens[-1])
    node = 0
    for token in path:
        node = tree.add(node, token, "ngram", 1.0, 1.0)
    return text.free(tree, node)


def tokens_of(found):
    return [guess.token for guess in found]


def test_what_followed_before():
    assert tokens_of(guesses([1, 2, 3, 4, 1, 2])) == [3]
    assert guesses([1, 2, 3, 4, 5]) == ()
    assert guesses([1]) == ()
    assert guesses([1, 2, 3, 2]) == ()  # one token says nothing


def test_a_longer_match_is_surer_and_comes_first():
    text = [1, 2, 3, 4, 5, 9, 9, 3, 4, 6, 8, 8, 1, 2, 3, 4]
    found = guesses(text)
    assert tokens_of(found) == [5, 6]
    assert found[0].confidence > found[1].confidence
    longer = guesses([7, 6, 5, 4, 3, 2, 1, 0, 7, 6, 5, 4, 3, 2, 1])
    assert longer[0].confidence > guesses([2, 1, 0, 2, 1])[0].confidence


def test_a_path_goes_on_with_what_it_matches():
    text = [1, 2, 3, 4, 5, 6, 7, 1, 2]
    assert tokens_of(guesses(text, [3])) == [4]
    assert tokens_of(guesses(text, [3, 4, 5])) == [6]
    assert guesses(text, [9]) == ()
    assert tokens_of(guesses(text, [9, 5, 6])) == [7]  # a new match begins in the path


def test_a_match_may_reach_beyond_the_end_of_the_text():
    assert tokens_of(guesses([5, 5, 5])) == [5]
    assert tokens_of(guesses([1, 2, 1, 2, 1], [2, 1, 2, 1])) == [2]


def test_a_text_that_was_cut_is_another_one():
    text = NgramText()
    text.sync([1, 2, 3, 1, 2])
    text.sync([4, 5, 6, 4, 5])
    assert tokens_of(text.free(TokenTree(5), 0)) == [6]
    assert text.free(TokenTree(2), 0)[0].token != 3


def longest_match(tokens):
    """What follows the longest earlier end of a text, by looking at all of them."""
    best = {}
    for place in range(len(tokens) - 1):
        length = 0
        while length <= place and length < LONGEST and tokens[place - length] == tokens[-1 - length]:
            length += 1
        if length >= 2:
            best[tokens[place + 1]] = max(best.get(tokens[place + 1], 0), length)
    return best


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60))
def test_every_guess_is_the_end_of_a_real_match(tokens):
    matches = longest_match(tokens)
    found = guesses(tokens)
    assert set(tokens_of(found)) <= set(matches)
    assert bool(found) == bool(matches)
    assert all(0 < guess.confidence < 1 for guess in found)


def test_copies_are_found_whatever_lies_between():
    draw = random.Random(0)
    source = [draw.randrange(50) for _ in range(400)]
    text = NgramText()
    tokens = [*source, 99]
    right = 0
    for token in source[100:200]:
        text.sync(tokens)
        found = text.free(TokenTree(tokens[-1]), 0)
        right += bool(found) and found[0].token == token
        tokens.append(token)
    assert right >= 90
