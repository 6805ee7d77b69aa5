import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from quept.evaluate import Reference, Windows

VOCABULARY, CONTEXT = 211, 24


def tiny_llama(seed: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,  # peaked enough that distributions differ from flat
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    torch.random.set_rng_state(state)
    return model


class Counting:
    """A reference forward that counts its calls."""

    def __init__(self, model):
        self.model, self.calls = model, 0

    def __call__(self, ids):
        self.calls += 1
        return self.model(input_ids=ids, use_cache=False).logits


@pytest.fixture(scope="session")
def model():
    return tiny_llama(0)


@pytest.fixture(scope="session")
def other():
    """Another model of the same shape: the first one with noise on its weights."""
    noisy, noise = tiny_llama(0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=noise)
    return noisy


@pytest.fixture
def windows():
    ids = torch.randint(VOCABULARY, (3, CONTEXT), generator=torch.Generator().manual_seed(2))
    return Windows(ids)


@pytest.fixture
def forward(model):
    return Counting(model)


@pytest.fixture
def reference(windows, forward, tmp_path):
    return Reference.open("fingerprint", windows, forward, tmp_path)
