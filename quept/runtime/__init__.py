"""Running an elastic model: loaded once, shared by everybody, at any precision.

model     ElasticModel: opens an artifact, hands out views; a view is the model at one plan
assembly  a model without the weights of its layers: what views are put together from
bank      WeightBank: (layer, setting) -> weight, made once, bounded in bytes, safe between threads
backends/ how a weight is multiplied on a device
memory    giving freed memory back to the system
sizes     bytes of every layer at every width, and of what stays: the memory numbers
kvcache   a key-value cache stored at its own width
template  chat templates, within bounds of time and memory
template_process the program that runs them
prompt    a conversation -> token ids; what a visitor types never becomes a control token
visual    a conversation about pictures -> what a vision-language model reads
decode    one token in one call of C, for the families it knows
generate  streaming text, one forward step at a time
"""

from .bank import WeightBank
from .generate import Sampling, stream
from .kvcache import make_cache
from .model import ElasticModel, compute_dtype, title_of
from .sizes import Sizes
