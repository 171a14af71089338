"""What `kosmos import` can read: the names in each kind of file, and the model's sizes from it."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from kosmos_jax.errors import UserError
from kosmos_jax.interop import fields, names
from kosmos_jax.interop.fields import Fields
from kosmos_jax.interop.tensors import Tensor, Weights, read_json

CONFIG, OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"


class Source(NamedTuple):
    """Weights that others publish.

    Attributes:
      tensors: by the names in the file, or by those that a fused one is taken apart into.
      sections: what of config.model the file decides, e.g. {"perception": {"image": {"encoder": {...}}}}.
      rename: our PyTorch name -> the name in the file.
      ignored: names in the file that carry nothing we need.
      head: the output layer, where the file may have one: it must be the embedding, as it is here.
      keeps: which of our PyTorch names the file has.
      convolution: whether the patch embedding is a convolution there.
    """

    tensors: Mapping[str, Tensor]
    sections: dict[str, dict[str, Any]]
    rename: Callable[[str], str]
    ignored: re.Pattern = re.compile(r"(?!)")
    head: str = ""
    keeps: Callable[[str], bool] = lambda name: True
    convolution: bool = True


def check_pixels(path: Path):
    """Compares what lies beside the weights with the normalisation of pixels here.

    Raises:
      UserError: it is another one.
    """
    for name, section in fields.PIXEL_SECTIONS.items():
        file = beside(path, name)
        given = read_json(file) if file.is_file() else {}
        given = given.get(section) if section and isinstance(given, Mapping) else given
        if isinstance(given, Mapping):
            fields.PIXELS.read_some(given, str(file))


def beside(path: Path, name: str) -> Path:
    """The file of that name in a folder of weights, or in the folder of a file of weights."""
    return (path if path.is_dir() else path.parent) / name


def _config(path: Path, *keys: str) -> Any:
    return read_json(beside(path, CONFIG), *keys)


def _read(path: Path, table: Fields, *keys: str, required: bool = False) -> dict[str, Any]:
    return table.read(_config(path, *keys), f"{beside(path, CONFIG)}: {'.'.join(keys)}".removesuffix(": "), required)


def _our_sections(path: Path, *keys: str) -> dict[str, dict[str, Any]]:
    """The sections that `kosmos export` wrote, complete; a modality is one that this version has an encoder for."""
    from configs import kosmos1
    from kosmos_jax.model import perception

    text = Fields({key: (key, value) for key, value in kosmos1.model()["text"].items()})
    sections = {"text": _read(path, text, *keys, "text", required=True), "perception": {}}
    found = _config(path, *keys, "perception")
    for name, section in found.items() if isinstance(found, Mapping) else ():
        where = f"{beside(path, CONFIG)}: {'.'.join([*keys, 'perception', name])}"
        flat = flatten_dict(section, sep=".") if isinstance(section, Mapping) else {}
        wanted = perception.keys(section) if flat else []
        problems = [f"{key} is missing" for key in wanted if key not in flat]
        problems += [f"{key} ({flat[key]!r:.40}) is unknown" for key in flat if key not in wanted]
        problems += [] if isinstance(flat.get("shape"), list) else ["shape must be a list"]
        if problems or not flat:
            raise UserError(f"{where}: no such model can be imported:\n    " + "\n    ".join(problems))
        sections["perception"][name] = section | {"shape": tuple(section["shape"])}
    return sections


def _image(vision: dict[str, Any], **more) -> dict[str, Any]:
    """A modality's section from the fields of a vision transformer."""
    size = vision.pop("image_size")
    return {"image": dict(shape=(size, size, 3), encoder=dict(kind="clip", **vision), **more)}


def _remote_code(path: Path, weights: Weights) -> Source:
    sections = _our_sections(path)
    _read(path, fields.REMOTE_CODE)
    return Source(weights.tensors, sections, lambda name: f"model.{name}", convolution=False)


def _torch(path: Path, weights: Weights) -> Source:
    sections = _our_sections(path, "model")
    _read(path, fields.TORCH)
    _read(path, fields.TORCH_MODEL, "model")
    return Source(weights.tensors, sections, lambda name: name, convolution=False)


def _kosmos2(path: Path, weights: Weights) -> Source:
    """By transformers' Kosmos2Config; what a config.json leaves out has transformers' default."""
    _config(path, "model_type")
    file, config = beside(path, CONFIG), _config(path)
    tokens = _read(path, fields.KOSMOS2)["tokens"]
    tables = dict(text_config=fields.KOSMOS2_TEXT, vision_config=fields.KOSMOS2_VISION)
    given = {key: {} if config.get(key) is None else config[key] for key in tables}
    text, vision = (table.read(given[key], f"{file}: {key}") for key, table in tables.items())
    connector = dict(kind="xconnector", heads=text["heads"], layers=1, dropout=text["attention_dropout"])
    return Source(
        weights.tensors,
        dict(
            text=text | dict(positions="sinusoidal"),
            perception=_image(vision, tokens=tokens, connector=connector),
        ),
        names.kosmos2,
        ignored=re.compile(r"text_model\.model\.embed_positions\.weights|.*position_ids"),
        head="text_model.lm_head.weight",
    )


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


def _clip(path: Path, weights: Weights) -> Source:
    """A CLIP vision tower as transformers (three prefixes), OpenAI or open_clip name it; the text tower is left."""
    tensors = weights.tensors
    for prefix in ("vision_model.model.", "vision_model.", ""):
        if f"{prefix}pre_layrnorm.weight" in tensors:
            ignored = r".*\.?position_ids|visual_projection\..*|text_.*|logit_scale"
            return _tower(tensors, prefix, names.clip, _clip_section(path), ignored)
    for prefix in ("visual.", ""):
        if f"{prefix}conv1.weight" in tensors and f"{prefix}class_embedding" in tensors:
            config, activation = _open_clip_config(path, tensors)
            section = _openai_section(path, prefix, tensors, activation, config)
            return _tower(_split_in_proj(tensors), prefix, names.openai, section, rf"{re.escape(prefix)}proj")
    raise UserError(f"{path} holds no vision tower of CLIP under any name known here")


def _tower(tensors: Mapping[str, Tensor], prefix: str, rename: Callable[[str], str], section, ignored: str) -> Source:
    """A vision tower whose names begin with `prefix`; what begins otherwise is another tower."""
    ignored = re.compile(rf"(?!{re.escape(prefix)}).*|{ignored}")
    sections = dict(perception=_image(section))
    return Source(tensors, sections, lambda name: prefix + rename(name), ignored, keeps=names.is_clip)


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


# Kind -> function from the path and what lies there to the source; UserError where it is plainly of another kind.
SOURCES: dict[str, Callable[[Path, Weights], Source]] = {
    "hf-kosmos2": _kosmos2,
    "clip": _clip,
    "hf-remote-code": _remote_code,
    "torch": _torch,
}
