"""Real models: the native decoder says what the Hugging Face path over the same weights says.

Activations are rounded to int8, so two float32 implementations drift apart: a difference in the last bit now and then
rounds an activation the other way, and that reaches the logits. How far is measured, not assumed: transformers with
one attention implementation against transformers with another.
"""

import os

import numpy as np
import pytest
import torch

import tmac

PROMPTS = [
    "The history of the city begins in the twelfth century, when merchants from the coast built a small harbour and",
    'def fibonacci(n):\n    """Returns the n-th Fibonacci number, computed with a loop and not recursively."""\n',
    "Once upon a time there was an old fisherman who lived alone with his dog at the edge of a great dark forest, and",
    "Water boils at a lower temperature on a mountain than at the sea, because the pressure is lower there. Therefore",
    "To make bread you need flour, water, salt and yeast. First mix the flour with the salt in a large bowl. Then",
    "The train left the station at seven in the morning, and when it came to the border three hours later, everybody",
    "Q: How many days does the month of February have in a leap year, and how many in all other years?\nA:",
    '{"name": "Alice", "age": 31, "city": "Lisbon", "languages": ["Portuguese", "English"], "job": "engineer", "pets":',
    "In mathematics, a prime number is a natural number greater than one that is no product of two smaller ones. The",
    "Dear Sir or Madam, I am writing to complain about the washing machine that I bought in your shop last month. It",
    "SELECT name, COUNT(*) FROM orders JOIN customers ON orders.customer_id = customers.id WHERE total > 100 GROUP",
    "The human heart has four chambers. Blood without oxygen enters the right atrium, goes to the right ventricle and",
    "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals, when it was checked by",
    "Photosynthesis is the process by which green plants turn the light of the sun, water and carbon dioxide into",
    "A good chess player thinks several moves ahead. Before every move you should ask yourself what the other wants",
    "import numpy as np\n\ndef moving_average(values, window):\n    values = np.asarray(values, float)\n    return",
    "The Roman Empire reached its greatest extent under the emperor Trajan, who ruled from 98 to 117. After his death",
    "<html>\n<head><title>My first page</title></head>\n<body>\n<h1>Welcome</h1>\n<p>This page is about my garden. It",
    "When you learn a new language, it is important to practise every day, even if only for a few minutes, because",
    "Light travels at about three hundred thousand kilometres per second, so that the light of the sun takes eight",
]
LARGE_RUN = "TMAC_TEST_MODELS" in os.environ  # a list of GGUF files, and all prompts: `.ci/run --full models`
COUNT, LENGTH = (20, 200) if LARGE_RUN else (3, 48)
PIECE = 16  # QuantLinear takes more tokens than these for a prompt


@pytest.fixture(scope="module", params=os.environ.get("TMAC_TEST_MODELS", "smollm2").split(os.pathsep))
def path(request):
    return request.getfixturevalue("smollm2") if request.param == "smollm2" else request.param


def generate(path):
    """Greedy texts of the engine: prompts and generated ids."""
    with tmac.Engine.from_pretrained(path, cache_type="f32") as engine:
        prompts = [engine.tokenizer.encode(prompt) for prompt in PROMPTS[:COUNT]]
        assert min(map(len, prompts)) > PIECE, "QuantLinear would take the prompt for generated tokens"
        return [
            (prompt, engine.generate(prompt, max_new_tokens=LENGTH, ignore_eos=True).token_ids) for prompt in prompts
        ]


def logits_along(model, prompt, tokens):
    """What the model says before each of the tokens: f32 `[tokens, vocab]`."""
    with torch.no_grad():
        state = model(torch.tensor([prompt]), use_cache=True)
        rows = [state.logits[0, -1:]]
        for at in range(0, len(tokens), PIECE):
            piece = torch.tensor([tokens[at : at + PIECE]])
            state = model(piece, past_key_values=state.past_key_values, use_cache=True)
            rows.append(state.logits[0])
    return torch.cat(rows)[: len(tokens)].numpy()


def test_greedy_text_is_that_of_the_hugging_face_path(path, capsys):
    texts = generate(path)
    model = tmac.from_pretrained(path, dtype=torch.float32)
    drift, ties, same = [], [], 0
    for prompt, tokens in texts:
        model.set_attn_implementation("sdpa")
        logits = logits_along(model, prompt, tokens)
        model.set_attn_implementation("eager")
        drift.append(np.sqrt(np.square(logits - logits_along(model, prompt, tokens)).mean()))
        gaps = logits.max(axis=1) - logits[np.arange(len(tokens)), tokens]
        first = int(np.argmax(gaps > 0)) if gaps.any() else None
        same += first is None
        ties += [] if first is None else [(first, float(gaps[first]))]
    with capsys.disabled():
        print(f"\n{path}: {same} of {len(texts)} texts of {LENGTH} tokens are the same; first differences at")
        print("  " + ", ".join(f"token {at}, {gap:.3f} below the best" for at, gap in ties))
        print(f"  logits of two attentions of transformers differ by {max(drift):.3f} (root mean square)")
    # The difference of two logits drifts by sqrt(2) of that; a first difference is one of some hundred such draws.
    assert all(gap <= 4 * np.sqrt(2) * max(drift) for _, gap in ties)
