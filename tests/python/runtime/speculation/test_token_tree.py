"""Trees of guesses."""

import numpy as np
import pytest

from tmac.runtime.speculation.tree import TokenTree


@pytest.fixture
def tree():
    made = TokenTree(10)
    a = made.add(0, 11, "x", 0.6, 0.6)
    b = made.add(0, 12, "x", 0.4, 0.4)
    c = made.add(a, 13, "x", 0.5, 0.5)
    d = made.add(b, 13, "x", 1.0, 1.0)
    assert (a, b, c, d) == (1, 2, 3, 4)
    return made


def test_chances_are_products(tree):
    assert tree.chances == pytest.approx([1, 0.6, 0.4, 0.3, 0.4])
    assert tree.depths == [0, 1, 1, 2, 2]
    assert tree.path(4) == [0, 2, 4]
    assert (tree.child(0, 12), tree.child(1, 12)) == (2, None)


def test_the_same_guess_twice_is_one_node(tree):
    assert tree.add(0, 11, "y", 0.1, 0.1) == 1
    assert len(tree) == 5


def test_any_number_of_the_best_is_a_tree(tree):
    assert tree.best() == [1, 2, 4, 3]
    for count in range(5):
        tokens, parents, nodes = tree.pruned(tree.best()[:count])
        assert tokens.dtype == parents.dtype == np.int32
        assert nodes[0] == 0
        assert len(tokens) == count + 1
        for row, (node, parent) in enumerate(zip(nodes, parents, strict=True)):
            assert tokens[row] == tree.tokens[node]
            assert parent < row
            assert tree.parents[node] == (nodes[parent] if parent >= 0 else -1)
