"""What a language model writes itself: its own answers to a few questions, at full precision.

A sensitivity that was measured on prose carries over badly to what a model says in a chat, since the tokens
of its own answers are likely ones and prose is full of surprises (ExLlamaV3's finding); so tables can be
measured on this text instead.
"""

from __future__ import annotations

from itertools import count

from quept import zoo
from quept.plan import PrecisionPlan
from quept.runtime import ElasticModel
from quept.runtime.generate import Sampling

OWN_WORDS = "own-words"
ANSWER = 256  # tokens of an answer at most


def own_words(elastic: ElasticModel, tokens: int, seed: int = 0) -> str:
    """Returns conversations with at least so many tokens, in the model's own template, or one behind the
    other without one: built-in questions, and what it answers at temperature 1. A seed gives the same
    again."""
    questions = [chat[0]["content"] for chat in zoo.chats("chats")]
    tokenizer, full, text = elastic.tokenizer, PrecisionPlan.full(), ""
    for number in count():
        question = questions[number % len(questions)]
        sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=ANSWER, seed=seed + number)
        answer = elastic.generate(full, question, sampling)
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        if tokenizer.chat_template:
            text += tokenizer.apply_chat_template(turns, tokenize=False)
        else:
            text += f"{question}\n{answer}\n\n"
        if len(tokenizer(text, add_special_tokens=False)["input_ids"]) >= tokens:
            return text
