"""Whisper's encoder as transformers and OpenAI publish it; the decoder of their files is left."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kosmos_jax.errors import UserError
from kosmos_jax.interop.formats.base import (
    NO_PART_OF_IT,
    PROJECTIONS,
    TRANSFORMERS,
    Fields,
    Opened,
    chain,
    count_layers,
    read_config,
    shapes_of,
)
from kosmos_jax.interop.tensors import Tensor
from kosmos_jax.model.perception.whisper import sinusoids

ENCODER = "audio.encoder."
transformers_names = chain(
    *PROJECTIONS,
    (rf"^{re.escape(ENCODER)}ln_post\.", "layer_norm."),
    (rf"^{re.escape(ENCODER)}", ""),
    (r"\bnorm1\.", "self_attn_layer_norm."),
    (r"\bnorm2\.", "final_layer_norm."),
)
# openai/whisper, model.py.
openai_names = chain(
    (rf"^{re.escape(ENCODER)}", ""),
    (r"^layers\.", "blocks."),
    (r"\battention\.", "attn."),
    (r"\bnorm1\.", "attn_ln."),
    (r"\bnorm2\.", "mlp_ln."),
    (r"\bfc1\.", "mlp.0."),
    (r"\bfc2\.", "mlp.2."),
)
# WhisperConfig of transformers; what is the decoder's, of training or of generation changes nothing in the encoder.
FIELDS = Fields(
    taken=dict(
        num_mel_bins=("mel_bins", 80),
        d_model=("width", 384),
        encoder_layers=("layers", 4),
        encoder_attention_heads=("heads", 6),
        encoder_ffn_dim=("ffn", 1536),
    ),
    fixed=NO_PART_OF_IT | dict(model_type="whisper", activation_function="gelu", scale_embedding=False),
    harmless=TRANSFORMERS
    | set(
        """dropout attention_dropout activation_dropout encoder_layerdrop forced_decoder_ids
        vocab_size decoder_layers decoder_attention_heads decoder_ffn_dim decoder_layerdrop max_source_positions
        max_target_positions num_hidden_layers use_weighted_layer_sum classifier_proj_size apply_spec_augment
        mask_time_prob mask_time_length mask_time_min_masks mask_feature_prob mask_feature_length
        mask_feature_min_masks median_filter_width""".split()
    ),
)


def opened(path: Path, tensors: Mapping[str, Tensor]) -> Opened:
    """Whisper's encoder, by the config.json of transformers or the shapes of OpenAI's file."""
    for prefix in ("model.encoder.", "encoder.", ""):
        if f"{prefix}layer_norm.weight" in tensors and f"{prefix}conv1.weight" in tensors:
            section = read_config(path, FIELDS)
            return _encoder(path, tensors, prefix, transformers_names, section, "embed_positions.weight")
        if f"{prefix}ln_post.weight" in tensors and f"{prefix}conv1.weight" in tensors:
            section = _openai_section(path, prefix, tensors)
            return _encoder(path, tensors, prefix, openai_names, section, "positional_embedding")
    raise UserError(f"{path} holds no encoder of Whisper under any name known here")


def _encoder(
    path: Path,
    tensors: Mapping[str, Tensor],
    prefix: str,
    rename: Callable[[str], str],
    section: dict[str, Any],
    positions: str,
) -> Opened:
    """An encoder whose names begin with `prefix`; what begins otherwise is the decoder's."""
    table = f"{prefix}{positions}"
    shape = tensors[table].shape if table in tensors else (0, section["width"])
    if len(shape) != 2 or shape[1] != section["width"] or shape[1] % 2 or shape[1] < 4:
        raise UserError(f"{path}: {table} is {list(shape)}, and the encoder is {section['width']} wide")
    return Opened(
        tensors,
        dict(perception={"audio": dict(encoder=dict(kind="whisper", **section))}),
        lambda name: prefix + rename(name),
        ignored=re.compile(rf"(?!{re.escape(prefix)}).*|{re.escape(table)}|.*decoder\..*|proj_out\..*"),
        part=ENCODER,
        positions={table: sinusoids(*shape)},
    )


def _openai_section(path: Path, prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """From the shapes; heads are 64 wide in every published size."""
    shape = shapes_of(path, tensors)
    width, mel_bins, _ = shape(f"{prefix}conv1.weight")
    return dict(
        mel_bins=mel_bins,
        width=width,
        layers=count_layers(tensors, re.escape(prefix) + r"blocks\.(\d+)\."),
        heads=max(1, width // 64),
        ffn=shape(f"{prefix}blocks.0.mlp.0.weight")[0],
    )
