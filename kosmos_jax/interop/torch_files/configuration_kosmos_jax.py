"""The configuration of a KOSMOS-1 that kosmos_jax trained, for transformers."""

from transformers import PretrainedConfig


def section_property(section: str, key: str):
    """What transformers calls by a name of its own, e.g. `hidden_size`, stored once: in the section that is ours."""

    def get(self):
        return getattr(self, section).get(key)

    def set(self, value):
        getattr(self, section)[key] = value

    return property(get, set)


class KosmosJaxConfig(PretrainedConfig):
    """The sections `text` and `perception` of kosmos_jax's config.model, as plain dictionaries."""

    model_type = "kosmos-jax"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]

    vocab_size = section_property("text", "vocab_size")
    hidden_size = section_property("text", "width")
    num_hidden_layers = section_property("text", "layers")
    num_attention_heads = section_property("text", "heads")

    def __init__(self, text=None, perception=None, **kwargs):
        self.text, self.perception = dict(text or {}), dict(perception or {})
        super().__init__(**{"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, **kwargs})
