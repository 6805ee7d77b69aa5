"""Measuring a model or a view: perplexity, accuracy, divergence from full precision, speed; and the store of
what was measured.

windows   = cut(text, tokenizer, context=512, tokens=4096)
reference = Reference.open(elastic.base_identity, windows, forward, cache_dir() / "reference")
for estimate in divergence(elastic.view(plan), reference, windows):
    ...                                                 # one Estimate per window, stop any time
results.put(ResultKey(plan.key(layers), elastic.identity, windows.id), estimate.to_dict())

For a classifier of pictures: image_folder or stored_images instead of cut, ImageReference and accuracy. For a
vision-language model: question_folder or stored_questions, VqaReference and vqa.
"""

from quept.data.images import (
    ImageError,
    Images,
    image_folder,
    prepared,
    read_picture,
    save_images,
    stored_images,
)
from quept.data.questions import Questions, question_folder, stored_questions
from quept.data.windows import Windows, cut

from .accuracy import AccuracyEstimate, ClassChange, ImageReference, accuracy
from .divergence import Estimate, divergence
from .forward import NonFiniteLogits
from .intervals import wilson
from .perplexity import Perplexity, perplexity
from .reference import Reference
from .results import ResultKey, Results, ResultsError, Stored
from .speed import Speed, speed
from .vqa import VqaEstimate, VqaReference, vqa

__all__ = [
    "AccuracyEstimate",
    "ClassChange",
    "Estimate",
    "ImageError",
    "ImageReference",
    "Images",
    "NonFiniteLogits",
    "Perplexity",
    "Questions",
    "Reference",
    "ResultKey",
    "Results",
    "ResultsError",
    "Speed",
    "Stored",
    "VqaEstimate",
    "VqaReference",
    "Windows",
    "accuracy",
    "cut",
    "divergence",
    "image_folder",
    "perplexity",
    "prepared",
    "question_folder",
    "read_picture",
    "save_images",
    "speed",
    "stored_images",
    "stored_questions",
    "vqa",
    "wilson",
]
