"""CLIP's vision transformer as transformers, OpenAI and open_clip publish it; the text side of their files is left."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from kosmos_jax.errors import UserError
from kosmos_jax.interop.formats.base import PROJECTIONS, Fields, Opened, Source, beside, chain
from kosmos_jax.interop.tensors import Tensor, read_json
from kosmos_jax.model.perception.clip import PIXEL_MEAN, PIXEL_STD

ENCODER = "image.encoder."  # our PyTorch names of it begin so
OPEN_CLIP_CONFIG = "open_clip_config.json"

# transformers' CLIPVisionTransformer without a prefix ("pre_layrnorm" is how they spell it); the encoder alone.
transformers_names = chain(
    *PROJECTIONS,
    (r"^image\.encoder\.class_token$", "embeddings.class_embedding"),
    (r"^image\.encoder\.positions$", "embeddings.position_embedding.weight"),
    (r"^image\.encoder\.patch\.", "embeddings.patch_embedding."),
    (r"^image\.encoder\.ln_pre\.", "pre_layrnorm."),
    (r"^image\.encoder\.ln_post\.", "post_layernorm."),
    (r"^image\.encoder\.", "encoder."),
    (r"\bnorm([12])\.", r"layer_norm\1."),
    (r"\b(fc[12])\.", r"mlp.\1."),
)

# OpenAI's and open_clip's visual transformer, whose attention has one in_proj for query, key and value.
openai_names = chain(
    (r"^image\.encoder\.class_token$", "class_embedding"),
    (r"^image\.encoder\.positions$", "positional_embedding"),
    (r"^image\.encoder\.patch\.", "conv1."),
    (r"^image\.encoder\.", ""),
    (r"^layers\.", "transformer.resblocks."),
    (r"\bnorm([12])\.", r"ln_\1."),
    (r"\bfc1\.", "mlp.c_fc."),
    (r"\bfc2\.", "mlp.c_proj."),
    (r"\battention\.(query|key|value)\.", r"attn.\1."),
    (r"\battention\.out\.", "attn.out_proj."),
)


def _vision(patch: int, width: int, layers: int, heads: int, ffn: int) -> Fields:
    """The fields of transformers' vision config, with defaults of these sizes."""
    return Fields.of_transformers(
        taken=dict(
            image_size=("image_size", 224),
            patch_size=("patch_size", patch),
            hidden_size=("width", width),
            num_hidden_layers=("layers", layers),
            num_attention_heads=("heads", heads),
            intermediate_size=("ffn", ffn),
            hidden_act=("activation", "quick_gelu"),
        ),
        fixed=dict(num_channels=3, layer_norm_eps=1e-5, attention_dropout=0, dropout=0),
    )


KOSMOS2_VISION, CLIP_VISION = _vision(14, 1024, 24, 16, 4096), _vision(32, 768, 12, 12, 3072)
# A config of which nothing but the vision tower is read.
AROUND_VISION = Fields.of_transformers(
    harmless="text_config vision_config text_config_dict vision_config_dict latent_query_num".split()
)

# open_clip_config.json: model_cfg, and in it CLIPVisionCfg (src/open_clip/model.py). The tensors' shapes say the rest.
OPEN_CLIP = Fields(
    taken=dict(quick_gelu=("quick_gelu", False)),
    harmless="""embed_dim vision_cfg text_cfg multimodal_cfg custom_text init_logit_scale init_logit_bias
    nonscalar_logit_scale cast_dtype output_dict""".split(),
)
OPEN_CLIP_VISION = Fields(
    taken=dict(head_width=("head_width", 64)),
    fixed=dict.fromkeys("ls_init_value act_kwargs norm_kwargs timm_model_name".split())
    | dict.fromkeys("patch_dropout attentional_pool no_ln_pre final_ln_after_pool".split(), False)
    | dict(pos_embed_type="learnable"),
    harmless="mlp_ratio pool_type output_tokens attn_pooler_queries attn_pooler_heads".split(),
)

# How pixels are normalised (kosmos_jax/model/perception/clip.py), and the section of each file that says it.
PIXELS = dict.fromkeys(("image_mean", "mean"), list(PIXEL_MEAN)) | dict.fromkeys(("image_std", "std"), list(PIXEL_STD))
PIXEL_SECTIONS = {
    "preprocessor_config.json": "",
    "processor_config.json": "image_processor",
    "open_clip_config.json": "preprocess_cfg",
}


def check_pixels(source: Source):
    """Compares what lies beside the weights with the normalisation of pixels here.

    Raises:
      UserError: it is another one.
    """
    for name, section in PIXEL_SECTIONS.items():
        file = beside(source.path, name)
        given = read_json(file) if file.is_file() else {}
        given = given.get(section) if section and isinstance(given, Mapping) else given
        if isinstance(given, Mapping):
            Fields(fixed=PIXELS, harmless=given.keys()).read(given, str(file))


def image_section(vision: dict[str, Any], **more) -> dict[str, Any]:
    """A modality's section from the fields of a vision transformer."""
    size = vision.pop("image_size")
    return dict(shape=(size, size, 3), encoder=dict(kind="clip", **vision), **more)


def _clip_section(source: Source) -> dict[str, Any]:
    """Of a config.json of transformers' CLIP, of its vision tower alone, or of Kosmos-2."""
    tower = KOSMOS2_VISION if "kosmos" in str(source.config("model_type")) else CLIP_VISION
    # Old files have the section twice, and transformers takes this one (CLIPConfig.__post_init__).
    for key in ("vision_config_dict", "vision_config"):
        if source.config().get(key) is not None:
            source.fields(AROUND_VISION)
            return source.fields(tower, key)
    return source.fields(tower)


def _openai_section(source: Source, prefix: str) -> dict[str, Any]:
    """From the shapes, with which open_clip's config, where there is one, has to agree."""
    config, activation = _open_clip_config(source)
    width, _, patch, _ = source.shape(f"{prefix}conv1.weight")
    section = dict(
        image_size=patch * round((source.shape(f"{prefix}positional_embedding")[0] - 1) ** 0.5),
        patch_size=patch,
        width=width,
        layers=source.layers(f"{prefix}transformer.resblocks."),
    )
    table = OPEN_CLIP_VISION._replace(fixed=OPEN_CLIP_VISION.fixed | section)
    head_width = table.read(config, f"{beside(source.path, OPEN_CLIP_CONFIG)}: vision_cfg")["head_width"]
    ffn = source.shape(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight")[0]
    return section | dict(heads=max(1, width // head_width), ffn=ffn, activation=activation)


def _open_clip_config(source: Source) -> tuple[Mapping[str, Any], str]:
    """open_clip's vision_cfg and the activation; OpenAI's own weights have no config and need QuickGELU."""
    file = beside(source.path, OPEN_CLIP_CONFIG)
    if file.is_file():
        quick = OPEN_CLIP.read(read_json(file, "model_cfg"), f"{file}: model_cfg")["quick_gelu"]
        return read_json(file, "model_cfg", "vision_cfg"), "quick_gelu" if quick else "gelu"
    if {"input_resolution", "context_length", "vocab_size"} <= set(source.tensors):
        return {}, "quick_gelu"  # only OpenAI's archives have these
    raise UserError(
        f"{source.path}: nothing says whether these weights need QuickGELU (OpenAI's do) or GELU (LAION's do), and the "
        f"wrong one spoils them; put open_clip's {OPEN_CLIP_CONFIG} beside the file"
    )


def opened(source: Source) -> Opened:
    """A CLIP vision tower as transformers (three prefixes), OpenAI or open_clip name it; the text tower is left."""
    check_pixels(source)
    for prefix in ("vision_model.model.", "vision_model.", ""):
        if f"{prefix}pre_layrnorm.weight" in source.tensors:
            section, ignored = _clip_section(source), r".*\.?position_ids|visual_projection\..*|text_.*|logit_scale"
            return source.encoder("image", image_section(section), prefix, transformers_names, ignored)
    for prefix in ("visual.", ""):
        if f"{prefix}conv1.weight" in source.tensors and f"{prefix}class_embedding" in source.tensors:
            section, ignored = _openai_section(source, prefix), rf"{re.escape(prefix)}proj"
            split = source._replace(tensors=_split_in_proj(source.tensors))
            return split.encoder("image", image_section(section), prefix, openai_names, ignored)
    raise UserError(f"{source.path} holds no vision tower of CLIP under any name known here")


def _split_in_proj(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's `attn.in_proj_weight` [3 d, d] as three tensors, `attn.query.weight` and so on."""

    def rows(tensor, first, count, index):
        start, stop, _ = index[0].indices(count)
        return tensor.read((slice(first + start, first + stop), *index[1:]))

    split = {}
    for name, tensor in tensors.items():
        fused = re.fullmatch(r"(.*\.attn\.)in_proj_(weight|bias)", name)
        if not fused:
            split[name] = tensor
            continue
        count, *rest = tensor.shape[0] // 3, *tensor.shape[1:]
        for i, part in enumerate(("query", "key", "value")):
            read = partial(rows, tensor, i * count, count)
            split[f"{fused[1]}{part}.{fused[2]}"] = tensor._replace(shape=(count, *rest), read=read)
    return split
