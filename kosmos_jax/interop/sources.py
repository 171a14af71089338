"""What `kosmos import` can read: the names in each kind of file, and the model's sizes from it."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kosmos_jax.errors import UserError
from kosmos_jax.interop import names
from kosmos_jax.interop.tensors import Tensor, read_json


class Source(NamedTuple):
    """A form of weights that others publish.

    Attributes:
      rename: our PyTorch name -> the name in the file.
      sections: (path, tensors) -> the sections of config.model that the file decides, e.g. {"vision": {...}}.
      ignored: names in the file that carry nothing we need.
      keeps: which of our PyTorch names the file has.
      convolution: whether the patch embedding is a convolution there.
    """

    rename: Callable[[str], str]
    sections: Callable[[Path, Mapping[str, Tensor]], dict[str, dict[str, Any]]]
    ignored: re.Pattern = re.compile(r"(?!)")
    keeps: Callable[[str], bool] = lambda name: True
    convolution: bool = True


def find_source(kind: str, path: Path, tensors: Mapping[str, Tensor]) -> tuple[Source, dict[str, Tensor]]:
    """The source of a kind, and the tensors under the names that it expects.

    Raises:
      UserError: the file is plainly of another kind.
    """
    return _clip(path, tensors) if kind == "clip" else (SOURCES[kind], dict(tensors))


def beside(path: Path, name: str) -> Path:
    """The file of that name in a folder of weights, or in the folder of a file of weights."""
    return (path if path.is_dir() else path.parent) / name


def _config(path: Path, *keys: str) -> Any:
    return read_json(beside(path, "config.json"), *keys)


def _our_sections(path: Path, *keys: str) -> dict[str, dict[str, Any]]:
    return {section: _config(path, *keys, section) for section in ("text", "vision", "connector")}


def _kosmos2_sections(path, tensors):
    """Of transformers' Kosmos2Config; what a config.json leaves out has transformers' default."""
    kind, config = _config(path, "model_type"), _config(path)
    text, vision = config.get("text_config") or {}, config.get("vision_config") or {}
    unfit = [
        f"{section}.{key} is {values[key]!r}"
        for section, values, key, fit in (
            ("text_config", text, "activation_function", "gelu"),
            ("text_config", text, "scale_embedding", True),
            ("text_config", text, "layer_norm_eps", 1e-5),
            ("vision_config", vision, "layer_norm_eps", 1e-5),
        )
        if values.get(key, fit) != fit
    ]
    if kind != "kosmos-2" or unfit:
        raise UserError(f"{path}: {'; '.join(unfit) or f'no Kosmos-2: model_type is {kind!r}'}")
    heads, queries = text.get("attention_heads", 32), config.get("latent_query_num", 64)
    return dict(
        text=dict(
            vocab_size=text.get("vocab_size", 65037),
            width=text.get("embed_dim", 2048),
            layers=text.get("layers", 24),
            heads=heads,
            ffn=text.get("ffn_dim", 8192),
            max_positions=text.get("max_position_embeddings", 2048),
            positions="sinusoidal",
            dropout=text.get("dropout", 0.1),
            attention_dropout=text.get("attention_dropout", 0.1),
        ),
        vision=_clip_section(vision),
        connector=dict(kind="xconnector", tokens=queries, heads=heads, layers=1),
    )


def _clip_section(vision: Mapping[str, Any]) -> dict[str, Any]:
    """Of transformers' CLIPVisionConfig or Kosmos2VisionConfig, whose defaults differ: CLIP-B/32 and CLIP-L/14."""
    kosmos = "kosmos" in vision.get("model_type", "kosmos")
    default = (1024, 24, 16, 4096, 14) if kosmos else (768, 12, 12, 3072, 32)
    return dict(
        image_size=vision.get("image_size", 224),
        patch_size=vision.get("patch_size", default[4]),
        width=vision.get("hidden_size", default[0]),
        layers=vision.get("num_hidden_layers", default[1]),
        heads=vision.get("num_attention_heads", default[2]),
        ffn=vision.get("intermediate_size", default[3]),
        activation=vision.get("hidden_act", "quick_gelu"),
    )


def _layers(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})


def _unilm_sections(path, tensors):
    """From the shapes: the file's own arguments are fairseq's. Heads of 64, as all of the family have."""
    shape = _shapes_of(path, tensors)
    vocabulary, width = shape("gpt_model.decoder.embed_tokens.weight")
    return dict(
        text=dict(
            vocab_size=vocabulary,
            width=width,
            layers=_layers(tensors, r"gpt_model\.decoder\.layers\.(\d+)\."),
            heads=max(1, width // 64),
            ffn=shape("gpt_model.decoder.layers.0.ffn.fc1.weight")[0],
            positions="sinusoidal",
        ),
        vision=_openai_section(path, "img_model.visual.", tensors, "quick_gelu"),
        connector=dict(
            kind="xconnector", tokens=shape("img_connector.latent_query")[0], heads=max(1, width // 64), layers=1
        ),
    )


def _shapes_of(path: Path, tensors: Mapping[str, Tensor]) -> Callable[[str], tuple[int, ...]]:
    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise UserError(f"{path} has no {name}: it is of another kind than --from says, or not whole")
        return tensors[name].shape

    return shape


def _openai_section(path: Path, prefix: str, tensors: Mapping[str, Tensor], activation: str) -> dict[str, Any]:
    shape = _shapes_of(path, tensors)
    width, _, patch, _ = shape(f"{prefix}conv1.weight")
    return dict(
        image_size=patch * round((shape(f"{prefix}positional_embedding")[0] - 1) ** 0.5),
        patch_size=patch,
        width=width,
        layers=_layers(tensors, re.escape(prefix) + r"transformer\.resblocks\.(\d+)\."),
        heads=max(1, width // 64),
        ffn=shape(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight")[0],
        activation=activation,
    )


def _clip(path: Path, tensors: Mapping[str, Tensor]) -> tuple[Source, dict[str, Tensor]]:
    """A CLIP vision tower as transformers (three prefixes), OpenAI or open_clip name it; the text tower is left."""
    for prefix in ("vision_model.model.", "vision_model.", ""):
        if f"{prefix}pre_layrnorm.weight" in tensors:
            config = _config(path)
            section = _clip_section(config.get("vision_config", config))
            ignored = r".*\.?position_ids|visual_projection\..*|text_.*|logit_scale"
            return _tower(prefix, names.clip, section, ignored), dict(tensors)
    for prefix in ("visual.", ""):
        if f"{prefix}conv1.weight" in tensors and f"{prefix}class_embedding" in tensors:
            section = _openai_section(path, prefix, tensors, _openai_activation(path, tensors))
            return _tower(prefix, names.openai, section, rf"{re.escape(prefix)}proj"), _split_in_proj(tensors)
    raise UserError(f"{path} holds no vision tower of CLIP under any name known here")


def _tower(prefix: str, rename: Callable[[str], str], section: dict[str, Any], ignored: str) -> Source:
    """A vision tower whose names begin with `prefix`; what begins otherwise is another tower."""
    return Source(
        rename=lambda name: prefix + rename(name),
        sections=lambda path, tensors: dict(vision=section),
        ignored=re.compile(rf"(?!{re.escape(prefix)}).*|{ignored}"),
        keeps=names.is_vision,
    )


def _openai_activation(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """OpenAI's own weights need QuickGELU; of open_clip's, its config file tells."""
    file = beside(path, "open_clip_config.json")
    if file.is_file():
        return "quick_gelu" if read_json(file, "model_cfg").get("quick_gelu") else "gelu"
    if {"input_resolution", "context_length", "vocab_size"} <= set(tensors):
        return "quick_gelu"  # only OpenAI's archives have these
    raise UserError(
        f"{path}: nothing says whether these weights need QuickGELU (OpenAI's do) or GELU (LAION's do), and the wrong "
        f"one spoils them; put open_clip's open_clip_config.json beside the file"
    )


def _split_in_proj(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's `attn.in_proj_weight` [3 d, d] as three tensors, `attn.query.weight` and so on."""
    split = {}
    for name, tensor in tensors.items():
        fused = re.fullmatch(r"(.*\.attn\.)in_proj_(weight|bias)", name)
        if not fused:
            split[name] = tensor
            continue
        shape = (tensor.shape[0] // 3, *tensor.shape[1:])
        for i, part in enumerate(("query", "key", "value")):
            split[f"{fused[1]}{part}.{fused[2]}"] = Tensor(shape, _rows_from(tensor, i * shape[0], shape[0]))
    return split


def _rows_from(tensor: Tensor, first: int, rows: int):
    def read(index):
        start, stop, _ = index[0].indices(rows)
        return tensor.read((slice(first + start, first + stop), *index[1:]))

    return read


SOURCES = {
    "hf-kosmos2": Source(
        names.kosmos2, _kosmos2_sections, re.compile(r"text_model\.lm_head\..*|.*embed_positions\..*|.*position_ids")
    ),
    "unilm": Source(
        names.unilm,
        _unilm_sections,
        re.compile(
            r"gpt_model\.decoder\.(output_projection\.weight|version|embed_positions\..*|.*self_attn_sope\..*)"
            r"|img_model\.visual\.proj|img_model\.(?!visual\.).*"
        ),
    ),
    "hf-remote-code": Source(lambda name: f"model.{name}", lambda path, _: _our_sections(path), convolution=False),
    "torch": Source(lambda name: name, lambda path, _: _our_sections(path, "model"), convolution=False),
}
