"""Running an elastic model: loaded once, shared by everybody, at any precision.

model     ElasticModel: opens an artifact, hands out views; a view is the model at one plan
bank      WeightBank: (layer, width) -> weight, made once, bounded in bytes, safe between threads
linear    the linear layer of a view
memory    giving freed memory back to the system
baselines bitsandbytes NF4 and LLM.int8 as views, to compare with
sizes     bytes of every layer at every width, and of what stays: the memory numbers
kvcache   a key-value cache stored at its own width
prompt    a conversation -> token ids; what a visitor types never becomes a control token
visual    a conversation about pictures -> what a vision-language model reads
generate  streaming text, one forward step at a time
"""

from .bank import WeightBank
from .baselines import BASELINES, Baseline, BaselineError
from .generate import Sampling, interleave, stream
from .kvcache import make_cache
from .model import ElasticModel, compute_dtype
from .sizes import Sizes

__all__ = [
    "BASELINES",
    "Baseline",
    "BaselineError",
    "ElasticModel",
    "Sampling",
    "Sizes",
    "WeightBank",
    "compute_dtype",
    "interleave",
    "make_cache",
    "stream",
]
