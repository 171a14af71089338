"""Whisper's encoder as transformers and OpenAI publish it; the decoder of their files is left."""

import re
from collections.abc import Callable
from typing import Any

from kosmos_jax.errors import UserError
from kosmos_jax.interop.formats.base import PROJECTIONS, Fields, Opened, Source, chain
from kosmos_jax.model.perception.whisper import sinusoids

transformers_names = chain(
    *PROJECTIONS,
    (r"^audio\.encoder\.ln_post\.", "layer_norm."),
    (r"^audio\.encoder\.", ""),
    (r"\bnorm1\.", "self_attn_layer_norm."),
    (r"\bnorm2\.", "final_layer_norm."),
)
# openai/whisper, model.py.
openai_names = chain(
    (r"^audio\.encoder\.", ""),
    (r"^layers\.", "blocks."),
    (r"\battention\.", "attn."),
    (r"\bnorm1\.", "attn_ln."),
    (r"\bnorm2\.", "mlp_ln."),
    (r"\bfc1\.", "mlp.0."),
    (r"\bfc2\.", "mlp.2."),
)
# WhisperConfig of transformers; what is the decoder's, of training or of generation changes nothing in the encoder.
FIELDS = Fields.of_transformers(
    taken=dict(
        num_mel_bins=("mel_bins", 80),
        d_model=("width", 384),
        encoder_layers=("layers", 4),
        encoder_attention_heads=("heads", 6),
        encoder_ffn_dim=("ffn", 1536),
    ),
    fixed=dict(model_type="whisper", activation_function="gelu", scale_embedding=False),
    harmless="""dropout attention_dropout activation_dropout encoder_layerdrop forced_decoder_ids
    vocab_size decoder_layers decoder_attention_heads decoder_ffn_dim decoder_layerdrop max_source_positions
    max_target_positions num_hidden_layers use_weighted_layer_sum classifier_proj_size apply_spec_augment
    mask_time_prob mask_time_length mask_time_min_masks mask_feature_prob mask_feature_length
    mask_feature_min_masks median_filter_width""".split(),
)


def opened(source: Source) -> Opened:
    """Whisper's encoder, by the config.json of transformers or the shapes of OpenAI's file."""
    for prefix in ("model.encoder.", "encoder.", ""):
        if f"{prefix}conv1.weight" not in source.tensors:
            continue
        if f"{prefix}layer_norm.weight" in source.tensors:
            section = source.fields(FIELDS)
            return _encoder(source, prefix, transformers_names, section, "embed_positions.weight")
        if f"{prefix}ln_post.weight" in source.tensors:
            section = _openai_section(source, prefix)
            return _encoder(source, prefix, openai_names, section, "positional_embedding")
    raise UserError(f"{source.path} holds no encoder of Whisper under any name known here")


def _encoder(
    source: Source, prefix: str, rename: Callable[[str], str], section: dict[str, Any], positions: str
) -> Opened:
    """An encoder with its table of positions, or without; what does not begin with `prefix` is the decoder's."""
    table, width = f"{prefix}{positions}", section["width"]
    shape = source.tensors[table].shape if table in source.tensors else (0, width)
    if len(shape) != 2 or shape[1] != width or width % 2 or width < 4:
        raise UserError(f"{source.path}: {table} is {list(shape)}, and the encoder is {width} wide")
    section, ignored = dict(encoder=dict(kind="whisper", **section)), rf"{re.escape(table)}|.*decoder\..*|proj_out\..*"
    return source.encoder("audio", section, prefix, rename, ignored)._replace(positions={table: sinusoids(*shape)})


def _openai_section(source: Source, prefix: str) -> dict[str, Any]:
    """From the shapes; heads are 64 wide in every published size."""
    width, mel_bins, _ = source.shape(f"{prefix}conv1.weight")
    return dict(
        mel_bins=mel_bins,
        width=width,
        layers=source.layers(f"{prefix}blocks."),
        heads=max(1, width // 64),
        ffn=source.shape(f"{prefix}blocks.0.mlp.0.weight")[0],
    )
