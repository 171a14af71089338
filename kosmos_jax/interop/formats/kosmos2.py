"""transformers' Kosmos-2: the one model of the family that it has, with sinusoids and images alone."""

import re
from typing import Any

from kosmos_jax.interop.formats import clip
from kosmos_jax.interop.formats.base import IDS, PROJECTIONS, ExportFormat, Fields, Opened, Source, chain, for_dtype

# torchscale/architecture/decoder.py, Decoder(subln=True, share_decoder_input_output_embed=True); the decoder alone.
torchscale_names = chain(
    *PROJECTIONS,
    (r"^embedding\.", "embed_tokens."),
    (r"^decoder\.final_norm\.", "layer_norm."),
    (r"^decoder\.", ""),
    (r"\battention_norm\.", "self_attn_layer_norm."),
    (r"\battention\.inner_norm\.", "self_attn.inner_attn_ln."),
    (r"\bffn_norm\.", "final_layer_norm."),
    (r"\bffn_inner_norm\.", "ffn.ffn_layernorm."),
    (r"\b(fc[12])\.", r"ffn.\1."),
)

# The released connector.
_connector = chain(
    (r"^image\.connector\.queries$", "latent_query"),
    (r"^image\.connector\.", ""),
    *PROJECTIONS,
    (r"^self_attn\.", "x_attn."),
)


def names(name: str) -> str:
    """Our PyTorch name -> that of transformers' Kosmos2ForConditionalGeneration."""
    if name.startswith(clip.ENCODER):
        return "vision_model.model." + clip.transformers_names(name)
    if name.startswith("image.connector."):
        return "image_to_text_projection." + _connector(name)
    return "text_model.model." + torchscale_names(name)


# Kosmos2Config and its sections, with transformers' defaults.
AROUND = Fields.of_transformers(
    taken=dict(latent_query_num=("tokens", 64)),
    fixed=dict(model_type="kosmos-2"),
    harmless=("text_config", "vision_config"),
)
TEXT = Fields.of_transformers(
    taken=dict(
        vocab_size=("vocab_size", 65037),
        embed_dim=("width", 2048),
        layers=("layers", 24),
        attention_heads=("heads", 32),
        ffn_dim=("ffn", 8192),
        max_position_embeddings=("max_positions", 2048),
        dropout=("dropout", 0.1),
        attention_dropout=("attention_dropout", 0.1),
    ),
    fixed=IDS
    | dict(activation_function="gelu", scale_embedding=True, layer_norm_eps=1e-5, activation_dropout=0, layerdrop=0),
)


def refusal(model) -> str:
    reasons = []
    if model.text.positions != "sinusoidal":
        reasons.append(f"model.text.positions is {model.text.positions!r} and Kosmos-2 there has sinusoids only")
    if set(model.perception) != {"image"}:
        reasons.append(f"model.perception has {', '.join(model.perception) or 'nothing'} and it has images only")
    else:
        connector = model.perception.image.connector
        if connector.kind != "xconnector":
            reasons.append(f"the kind of the connector is {connector.kind!r} and it has the xconnector only")
        if connector.heads != model.text.heads:
            reasons.append(f"the connector's heads are {connector.heads}, which must be model.text.heads there")
    return "; ".join([*reasons, "--to hf-remote-code takes every model"]) if reasons else ""


def config(model, dtype: str) -> dict[str, Any]:
    """config.json of transformers' Kosmos2Config.

    It asks for eager attention because SDPA gave wrong image vectors in transformers 4.52.1 to 5.22.2: in each section,
    since from 4.54 to 4.57 what the top says does not reach the sections.
    """
    image, eager = model.perception.image, dict(_attn_implementation="eager")
    text = TEXT.written(model.text) | dict(model_type="kosmos_2_text_model", tie_word_embeddings=True)
    vision = clip.KOSMOS2_VISION.written(image.encoder.to_dict() | dict(image_size=image.shape[0]))
    return dict(
        architectures=["Kosmos2ForConditionalGeneration"],
        **AROUND.written(image),
        **for_dtype(dtype),
        **eager,
        text_config=eager | text,
        vision_config=eager | vision | dict(model_type="kosmos_2_vision_model"),
    )


def opened(source: Source) -> Opened:
    """By transformers' Kosmos2Config; what a config.json leaves out has transformers' default."""
    source.config("model_type")
    clip.check_pixels(source)
    tokens, tables = source.fields(AROUND)["tokens"], dict(text_config=TEXT, vision_config=clip.KOSMOS2_VISION)
    given = {key: source.config().get(key) for key in tables}
    text, vision = (
        table.read({} if given[key] is None else given[key], source.where(key)) for key, table in tables.items()
    )
    connector = dict(kind="xconnector", heads=text["heads"], layers=1, dropout=text["attention_dropout"])
    image = clip.image_section(vision, tokens=tokens, connector=connector)
    return Opened(
        source.tensors,
        dict(text=text | dict(positions="sinusoidal"), perception=dict(image=image)),
        names,
        ignored=re.compile(r"text_model\.model\.embed_positions\.weights|.*position_ids"),
        head="text_model.lm_head.weight",
        convolution=True,
    )


EXPORT = ExportFormat(names, config, refusal, convolution=True)
