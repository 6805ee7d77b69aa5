"""Texts, pictures and conversations: what models are calibrated on and measured on.

base           the contract of what is calibrated on, one class a kind: SOURCES is the table of them
text           ... windows of texts; pictures: of a folder; conversations: about pictures
photographs    ... crops of the photographs that packages bring; distilled: pictures made from a model alone
batches, ragged  their samples as inputs of a model's forward, of one length or of several
evalset        the contract of what plans are measured on in batches: an id, and batches that are kept
images         ... labelled pictures, and how any picture becomes an input
choices        ... multiple choice and cloze, packed into windows
questions      ... questions about pictures with their answers; pairs: those in a folder of a person's own
own_words      what a language model writes itself
windows        the windows of a text that perplexity and divergence are measured on
easy_vqa, fashion_mnist  the published data that the small models were trained on
"""

from .base import Data, DataError, DataSource, FolderSource, Wanted
from .conversations import Conversations
from .distilled import Distilled
from .photographs import Photographs
from .pictures import Pictures
from .text import Text

SOURCES: dict[str, type[DataSource]] = {
    "text": Text,
    "images": Pictures,
    "pairs": Conversations,
    "photographs": Photographs,
    "distilled": Distilled,
}
