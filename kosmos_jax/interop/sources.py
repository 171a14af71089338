"""What `kosmos import` can read: the names in each kind of file, and the model's sizes from it."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kosmos_jax.errors import UserError
from kosmos_jax.interop import fields, names
from kosmos_jax.interop.fields import Fields
from kosmos_jax.interop.tensors import Tensor, fairseq_arguments, read_json

CONFIG, OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"


class Source(NamedTuple):
    """A form of weights that others publish.

    Attributes:
      rename: our PyTorch name -> the name in the file.
      sections: (path, tensors) -> the sections of config.model that the file decides, e.g. {"vision": {...}}.
      ignored: names in the file that carry nothing we need.
      head: the output layer, where the file may have one: it must be the embedding, as it is here.
      keeps: which of our PyTorch names the file has.
      convolution: whether the patch embedding is a convolution there.
    """

    rename: Callable[[str], str]
    sections: Callable[[Path, Mapping[str, Tensor]], dict[str, dict[str, Any]]]
    ignored: re.Pattern = re.compile(r"(?!)")
    head: str = ""
    keeps: Callable[[str], bool] = lambda name: True
    convolution: bool = True


def find_source(kind: str, path: Path, tensors: Mapping[str, Tensor]) -> tuple[Source, dict[str, Tensor]]:
    """The source of a kind, and the tensors under the names that it expects.

    Raises:
      UserError: the file is plainly of another kind.
    """
    return _clip(path, tensors) if kind == "clip" else (SOURCES[kind], dict(tensors))


def check_pixels(path: Path):
    """Compares what lies beside the weights with the normalisation of pixels here.

    Raises:
      UserError: it is another one.
    """
    for name, (section, fixed) in fields.PIXELS.items():
        file = beside(path, name)
        given = read_json(file) if file.is_file() else {}
        given = given.get(section) if section and isinstance(given, Mapping) else given
        if isinstance(given, Mapping):
            Fields(fixed=fixed).read_some(given, str(file))


def beside(path: Path, name: str) -> Path:
    """The file of that name in a folder of weights, or in the folder of a file of weights."""
    return (path if path.is_dir() else path.parent) / name


def _config(path: Path, *keys: str) -> Any:
    return read_json(beside(path, CONFIG), *keys)


def _read(path: Path, table: Fields, *keys: str) -> dict[str, Any]:
    return table.read(_config(path, *keys), f"{beside(path, CONFIG)}: {'.'.join(keys)}".removesuffix(": "))


def _our_sections(path: Path, around: Fields, *keys: str) -> dict[str, dict[str, Any]]:
    """The sections that `kosmos export` wrote, complete."""
    from configs import kosmos1

    sections = {}
    for name in ("text", "vision", "connector"):
        ours = kosmos1.model()[name]
        for key in ours:
            _config(path, *keys, name, key)
        sections[name] = _read(path, Fields({key: (key, value) for key, value in ours.items()}), *keys, name)
    _read(path, around)
    return sections


def _kosmos2_sections(path, tensors):
    """Of transformers' Kosmos2Config; what a config.json leaves out has transformers' default."""
    _config(path, "model_type")
    file, config = beside(path, CONFIG), _config(path)
    connector = _read(path, fields.KOSMOS2)
    tables = dict(text_config=fields.KOSMOS2_TEXT, vision_config=fields.KOSMOS2_VISION)
    given = {key: {} if config.get(key) is None else config[key] for key in tables}
    text, vision = (table.read(given[key], f"{file}: {key}") for key, table in tables.items())
    connector |= dict(kind="xconnector", heads=text["heads"], layers=1, dropout=text["attention_dropout"])
    return dict(text=text | dict(positions="sinusoidal"), vision=vision, connector=connector)


def _clip_section(path: Path) -> dict[str, Any]:
    """Of a config.json of transformers' CLIP, of its vision tower alone, or of Kosmos-2."""
    tower = fields.KOSMOS2_VISION if "kosmos" in str(_config(path, "model_type")) else fields.CLIP_VISION
    config = _config(path)
    # Old files have the section twice, and transformers takes this one (CLIPConfig.__post_init__).
    for key in ("vision_config_dict", "vision_config"):
        if config.get(key) is not None:
            _read(path, fields.AROUND_VISION)
            return _read(path, tower, key)
    return _read(path, tower)


def _layers(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})


def _unilm_sections(path, tensors):
    """From the shapes, and from fairseq's arguments in the file; heads of 64, as in all of the family, without them."""
    shape = _shapes_of(path, tensors)
    vocabulary, width = shape("gpt_model.decoder.embed_tokens.weight")
    table = fields.UNILM._replace(taken=dict(decoder_attention_heads=("heads", max(1, width // 64))))
    heads = table.read_some(fairseq_arguments(path), str(path))["heads"]
    return dict(
        text=dict(
            vocab_size=vocabulary,
            width=width,
            layers=_layers(tensors, r"gpt_model\.decoder\.layers\.(\d+)\."),
            heads=heads,
            ffn=shape("gpt_model.decoder.layers.0.ffn.fc1.weight")[0],
            positions="sinusoidal",
        ),
        vision=_openai_section(path, "img_model.visual.", tensors, "quick_gelu"),
        connector=dict(kind="xconnector", tokens=shape("img_connector.latent_query")[0], heads=heads, layers=1),
    )


def _shapes_of(path: Path, tensors: Mapping[str, Tensor]) -> Callable[[str], tuple[int, ...]]:
    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise UserError(f"{path} has no {name}: it is of another kind than --from says, or incomplete")
        return tensors[name].shape

    return shape


def _openai_section(
    path: Path, prefix: str, tensors: Mapping[str, Tensor], activation: str, config: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """From the shapes; `config` is open_clip's vision_cfg, which has to agree with them."""
    shape = _shapes_of(path, tensors)
    width, _, patch, _ = shape(f"{prefix}conv1.weight")
    section = dict(
        image_size=patch * round((shape(f"{prefix}positional_embedding")[0] - 1) ** 0.5),
        patch_size=patch,
        width=width,
        layers=_layers(tensors, re.escape(prefix) + r"transformer\.resblocks\.(\d+)\."),
    )
    table = fields.OPEN_CLIP_VISION
    table = table._replace(fixed=table.fixed | section)
    head_width = table.read(config or {}, f"{beside(path, OPEN_CLIP_CONFIG)}: vision_cfg")["head_width"]
    ffn = shape(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight")[0]
    return section | dict(heads=max(1, width // head_width), ffn=ffn, activation=activation)


def _clip(path: Path, tensors: Mapping[str, Tensor]) -> tuple[Source, dict[str, Tensor]]:
    """A CLIP vision tower as transformers (three prefixes), OpenAI or open_clip name it; the text tower is left."""
    for prefix in ("vision_model.model.", "vision_model.", ""):
        if f"{prefix}pre_layrnorm.weight" in tensors:
            ignored = r".*\.?position_ids|visual_projection\..*|text_.*|logit_scale"
            return _tower(prefix, names.clip, _clip_section(path), ignored), dict(tensors)
    for prefix in ("visual.", ""):
        if f"{prefix}conv1.weight" in tensors and f"{prefix}class_embedding" in tensors:
            config, activation = _open_clip_config(path, tensors)
            section = _openai_section(path, prefix, tensors, activation, config)
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


def _open_clip_config(path: Path, tensors: Mapping[str, Tensor]) -> tuple[Mapping[str, Any], str]:
    """open_clip's vision_cfg and the activation; OpenAI's own weights have no config and need QuickGELU."""
    file = beside(path, OPEN_CLIP_CONFIG)
    if file.is_file():
        quick = fields.OPEN_CLIP.read(read_json(file, "model_cfg"), f"{file}: model_cfg")["quick_gelu"]
        return read_json(file, "model_cfg", "vision_cfg"), "quick_gelu" if quick else "gelu"
    if {"input_resolution", "context_length", "vocab_size"} <= set(tensors):
        return {}, "quick_gelu"  # only OpenAI's archives have these
    raise UserError(
        f"{path}: nothing says whether these weights need QuickGELU (OpenAI's do) or GELU (LAION's do), and the wrong "
        f"one spoils them; put open_clip's {OPEN_CLIP_CONFIG} beside the file"
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
            rows = _rows_from(tensor, i * shape[0], shape[0])
            split[f"{fused[1]}{part}.{fused[2]}"] = tensor._replace(shape=shape, read=rows)
    return split


def _rows_from(tensor: Tensor, first: int, rows: int):
    def read(index):
        start, stop, _ = index[0].indices(rows)
        return tensor.read((slice(first + start, first + stop), *index[1:]))

    return read


SOURCES = {
    "hf-kosmos2": Source(
        names.kosmos2,
        _kosmos2_sections,
        re.compile(r"text_model\.model\.embed_positions\.weights|.*position_ids"),
        head="text_model.lm_head.weight",
    ),
    "unilm": Source(
        names.unilm,
        _unilm_sections,
        re.compile(
            r"gpt_model\.decoder\.(version|embed_positions\._float_tensor|.*self_attn_sope\..*)"
            r"|img_model\.visual\.proj|img_model\.(?!visual\.).*"
        ),
        head="gpt_model.decoder.output_projection.weight",
    ),
    "hf-remote-code": Source(
        lambda name: f"model.{name}", lambda path, _: _our_sections(path, fields.REMOTE_CODE), convolution=False
    ),
    "torch": Source(lambda name: name, lambda path, _: _our_sections(path, fields.TORCH, "model"), convolution=False),
}
