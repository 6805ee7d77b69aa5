"""Measuring a model or a view: tasks (perplexity, accuracy, divergence from full precision), speed; and the
store of what was measured.

task = tasks_of(elastic)["text"]                        # the first one is the default, see `tasks`
for estimate in task.estimates(elastic.view(plan), plan):
    ...                                                 # metrics as data after every step, stop any time
results.put(task.key(plan), estimate.to_dict())

tasks/        what plans are measured by: text, pictures, questions
token_scores  perplexity and divergence, window by window
answers       how far an answer is from full precision, token by token, while it is written
reference     full precision's answers, computed once and kept
forward       one window through a model
intervals     Wilson's interval
results       what was measured before: a DataFrame, written through to SQLite
shipped       results that come with the built-in models
harness       lm-evaluation-harness on a view
routing       which experts of a mixture a text asks
speed         tokens per second and time to the first
"""

from quept.data.images import (
    ImageError,
    Images,
    image_folder,
    read_picture,
    save_images,
    stored_images,
)
from quept.data.questions import Questions, question_folder, stored_questions
from quept.data.windows import Windows, cut
from quept.stage import make_callable

from .answers import AnswerScorer, AnswerSummary, TokenScore, summarize_scores
from .forward import NonFiniteLogits
from .intervals import wilson
from .reference import BatchReference, Reference, open_reference
from .results import ResultKey, Results, ResultsError, Stored
from .speed import Speed, measure_speed
from .tasks import TASKS, EvalTask, ImageTask, Metric, Sample, TaskEstimate, TextTask, VqaTask, tasks_of
from .tasks.image import AccuracyEstimate, ClassChange, accuracy, image_reference
from .tasks.vqa import VqaEstimate, vqa, vqa_reference
from .token_scores import Estimate, divergence

make_callable(__name__)
