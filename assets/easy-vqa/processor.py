"""What turns conversations about pictures into the inputs of the small vision-language model: a LLaVA
processor with a tokenizer of its own.

The tokenizer is byte-level BPE in lower case. Its merges are the beginnings of the words it was made for
(t, th, the, ...), so each of those words is one token, and anything else that people type becomes pieces and
bytes: no text is unknown. British spellings of colour and gray are read as the American ones of the data.

A conversation is written as

    <bos> <image> x 64 <user> what color is the circle? <assistant> red <eos> <user> ...

Pictures become 64 x 64 pixels, whatever their shape, with values from -1 to 1.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

PAD, BOS, EOS, IMAGE, USER, ASSISTANT = "<pad>", "<bos>", "<eos>", "<image>", "<user>", "<assistant>"
SPECIAL = (PAD, BOS, EOS, IMAGE, USER, ASSISTANT)  # their numbers are their places
SPELLINGS = {r"\bcolour": "color", r"\bgrey\b": "gray"}

# A picture comes before the words of its turn. "<image>" that somebody types is dropped: it would stand for a
# picture that is not there.
TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
    {%- set parts = [{"type": "text", "text": message["content"]}] if message["content"] is string \
else message["content"] %}
    {%- for part in parts if part["type"] == "image" %}{{ "<image>" }}{% endfor %}
    {%- if message["role"] == "user" %}{{ "<user>" }}
    {%- elif message["role"] == "assistant" %}{{ "<assistant>" }}
    {%- else %}{{ raise_exception("the roles are user and assistant") }}
    {%- endif %}
    {%- for part in parts if part["type"] == "text" %}
        {{- part["text"] | replace("<image>", "") | trim }}
    {%- endfor %}
    {%- if message["role"] == "assistant" %}{{ eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<assistant>" }}{% endif %}"""


def create_processor(words: Iterable[str], size: int, patch: int) -> LlavaProcessor:
    """words: those that become one token each. size: pixels a side; patch: of one image token."""
    image_processor = CLIPImageProcessor(
        size={"height": size, "width": size},
        do_center_crop=False,
        crop_size={"height": size, "width": size},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor,
        create_tokenizer(words),
        patch_size=patch,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,  # the tower's class token, which "default" takes away again
    )


def create_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """The same tokenizer for the same words, in whatever order."""
    vocabulary = {token: number for number, token in enumerate(SPECIAL)}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[byte] = len(vocabulary)
    merges = []
    for word in sorted(set(words)):
        word = f"Ġ{word}"  # a space in this alphabet
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            *(normalizers.Replace(Regex(pattern), new) for pattern, new in SPELLINGS.items()),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens={"image_token": IMAGE},
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=1024,
    )
