"""What `kosmos export` can write: which models each target can hold, under which names, with which config.json."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kosmos_jax.interop import names


class Target(NamedTuple):
    """A form of the weights for PyTorch.

    Attributes:
      rename: our PyTorch name -> the name in the file.
      config: (config.model, dtype) -> config.json.
      refusal: config.model -> why it cannot hold that model, with what to do instead; "" when it can.
      convolution: whether the patch embedding is a convolution there, not a linear layer.
    """

    rename: Callable[[str], str]
    config: Callable[[Mapping, str], dict[str, Any]]
    refusal: Callable[[Mapping], str] = lambda model: ""
    convolution: bool = False


def plain(config) -> Any:
    """A config's section as JSON has it."""
    if hasattr(config, "items"):
        return {key: plain(value) for key, value in config.items()}
    return list(config) if isinstance(config, tuple) else config


def _for_transformers(dtype: str) -> dict[str, Any]:
    """What every config.json for transformers says; "torch_dtype" is "dtype" for transformers before 4.56."""
    return dict(dtype=dtype, torch_dtype=dtype, tie_word_embeddings=True)


def _kosmos2_refusal(model) -> str:
    reasons = []
    if model.text.positions != "sinusoidal":
        reasons.append(f"model.text.positions is {model.text.positions!r} and Kosmos-2 there has sinusoids only")
    if set(model.perception) != {"image"}:
        reasons.append(f"model.perception has {', '.join(model.perception) or 'nothing'} and it has images only")
        return "; ".join(reasons) + "; --to hf-remote-code takes every model"
    connector = model.perception.image.connector
    if connector.kind != "xconnector":
        reasons.append(f"the kind of the connector is {connector.kind!r} and it has the xconnector only")
    if connector.heads != model.text.heads:
        reasons.append(f"the connector's heads are {connector.heads}, which must be model.text.heads there")
    return "; ".join(reasons) + "; --to hf-remote-code takes every model" if reasons else ""


def kosmos2_config(model, dtype: str) -> dict[str, Any]:
    """config.json of transformers' Kosmos2Config.

    It asks for eager attention because SDPA gave wrong image vectors in transformers 4.52.1 to 5.22.2: in each section,
    since from 4.54 to 4.57 what the top says does not reach the sections.
    """
    text, image, eager = model.text, model.perception.image, dict(_attn_implementation="eager")
    vision = image.encoder
    return dict(
        architectures=["Kosmos2ForConditionalGeneration"],
        model_type="kosmos-2",
        **_for_transformers(dtype),
        **eager,
        latent_query_num=image.tokens,
        text_config=dict(
            model_type="kosmos_2_text_model",
            **eager,
            vocab_size=text.vocab_size,
            max_position_embeddings=text.max_positions,
            embed_dim=text.width,
            layers=text.layers,
            ffn_dim=text.ffn,
            attention_heads=text.heads,
            activation_function="gelu",
            dropout=text.dropout,
            attention_dropout=text.attention_dropout,
            layer_norm_eps=1e-5,
            scale_embedding=True,
            tie_word_embeddings=True,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
        ),
        vision_config=dict(
            model_type="kosmos_2_vision_model",
            **eager,
            hidden_size=vision.width,
            intermediate_size=vision.ffn,
            num_hidden_layers=vision.layers,
            num_attention_heads=vision.heads,
            num_channels=3,
            image_size=image.shape[0],
            patch_size=vision.patch_size,
            hidden_act=vision.activation,
            layer_norm_eps=1e-5,
        ),
    )


def _remote_code_config(model, dtype: str) -> dict[str, Any]:
    code = "modeling_kosmos_jax.KosmosJaxForConditionalGeneration"
    return dict(
        architectures=["KosmosJaxForConditionalGeneration"],
        model_type="kosmos-jax",
        auto_map=dict(
            AutoConfig="configuration_kosmos_jax.KosmosJaxConfig",
            AutoModel=code,
            AutoModelForCausalLM=code,
            AutoModelForImageTextToText=code,
        ),
        **_for_transformers(dtype),
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        **{section: plain(model[section]) for section in ("text", "perception")},
    )


TARGETS = {
    "hf-kosmos2": Target(names.kosmos2, kosmos2_config, _kosmos2_refusal, convolution=True),
    "hf-remote-code": Target(lambda name: f"model.{name}", _remote_code_config),
    "torch": Target(lambda name: name, lambda model, dtype: dict(model=plain(model), dtype=dtype)),
}
