"""The vision-language model that comes along: read from where it lies, with questions to measure it on."""

import pytest
import torch
from PIL import Image

from quept import ElasticModel, PrecisionPlan, zoo
from quept.data.easy_vqa import read_questions
from quept.evaluate import stored_questions, vqa, vqa_reference
from quept.runtime.generate import Sampling, stream

HERE = zoo.MODELS["easy-vqa"].source.is_dir()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HERE, reason="assets/easy-vqa is not in this checkout"),
]


@pytest.fixture(scope="module")
def elastic() -> ElasticModel:
    return ElasticModel.open("easy-vqa", device="cpu", dtype=torch.float32)


def test_it_answers_its_own_questions_at_three_bits(elastic, tmp_path):
    assert (elastic.kind, elastic.title) == (
        "vision-language",
        "Easy-VQA LLaVA, 3.7 M parameters · weight-only",
    )
    questions = stored_questions(elastic.questions, elastic.processor, 300)
    reference = vqa_reference(elastic, questions, tmp_path)
    plan = PrecisionPlan.uniform(3).keeping(elastic.layout.vision_layers)
    *_, last = vqa(elastic.view(plan), questions, reference)
    assert last.questions == len(questions) >= 300
    assert last.top1_ref > 0.97 and last.top1 > 0.93


def test_what_it_says_is_what_is_counted(elastic):
    stored = read_questions(elastic.questions)
    view, plan = elastic.view(PrecisionPlan.uniform(8)), PrecisionPlan.uniform(8)
    right = 0
    for question in stored.questions[:12]:
        picture = Image.fromarray(stored.pixels[question.picture].numpy())
        content = [{"type": "image"}, {"type": "text", "text": question.text}]
        said = stream(
            view,
            elastic.tokenizer,
            [{"role": "user", "content": content}],
            Sampling(temperature=0, max_tokens=8),
            lambda: elastic.make_cache(plan),
            processor=elastic.processor,
            pictures=[picture],
        )
        right += "".join(event.text for event in said) == question.answer
    assert right >= 11
