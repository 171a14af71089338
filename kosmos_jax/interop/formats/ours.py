"""Our own formats: plain PyTorch (`torch`), and the same with transformers around it (`hf-remote-code`)."""

from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from kosmos_jax.errors import UserError
from kosmos_jax.interop.formats.base import IDS, TRANSFORMERS, ExportFormat, Fields, Opened, Source, for_dtype

ENCODERS = ("clip", "whisper")  # of torch_files/kosmos_torch.py
# What `kosmos export` writes around the sections that are ours.
SECTIONS = ("text", "perception")
REMOTE_CODE = Fields(fixed=IDS | dict(model_type="kosmos-jax"), harmless=TRANSFORMERS | {*SECTIONS})
TORCH = Fields(harmless=("model", "dtype"))
TORCH_MODEL = Fields(harmless=(*SECTIONS, "dtype", "remat", "scan_unroll"))


def _remote_code_config(model, dtype: str) -> dict[str, Any]:
    code = "modeling_kosmos_jax.KosmosJaxForConditionalGeneration"
    return dict(
        architectures=["KosmosJaxForConditionalGeneration"],
        **REMOTE_CODE.written({}),
        auto_map=dict(
            AutoConfig="configuration_kosmos_jax.KosmosJaxConfig",
            AutoModel=code,
            AutoModelForCausalLM=code,
            AutoModelForImageTextToText=code,
        ),
        **for_dtype(dtype),
        **{section: model[section].to_dict() for section in SECTIONS},
    )


def _our_sections(source: Source, *keys: str) -> dict[str, dict[str, Any]]:
    """The sections that `kosmos export` wrote, complete; a modality is one that this version has an encoder for."""
    from configs import kosmos1
    from kosmos_jax.model import perception

    text = Fields({key: (key, value) for key, value in kosmos1.model()["text"].items()})
    sections = {"text": source.fields(text, *keys, "text", required=True), "perception": {}}
    found = source.config(*keys, "perception")
    for name, section in found.items() if isinstance(found, Mapping) else ():
        flat = flatten_dict(section, sep=".") if isinstance(section, Mapping) else {}
        wanted = perception.keys(section) if flat else []
        problems = [f"{key} is missing" for key in wanted if key not in flat]
        problems += [f"{key} ({flat[key]!r:.40}) is unknown" for key in flat if key not in wanted]
        problems += [] if isinstance(flat.get("shape"), list) else ["shape must be a list"]
        if problems:
            where = source.where(*keys, "perception", name)
            raise UserError(f"{where}: no such model can be imported:\n    " + "\n    ".join(problems))
        sections["perception"][name] = section | {"shape": tuple(section["shape"])}
    return sections


def remote_code(source: Source) -> Opened:
    sections = _our_sections(source)
    source.fields(REMOTE_CODE)
    return Opened(source.tensors, sections, lambda name: f"model.{name}")


def torch(source: Source) -> Opened:
    sections = _our_sections(source, "model")
    source.fields(TORCH)
    source.fields(TORCH_MODEL, "model")
    return Opened(source.tensors, sections, lambda name: name)


def refusal(model) -> str:
    """Why PyTorch's twin cannot hold a model; "" when it can."""
    unknown = [name for name, section in model.perception.items() if section.encoder.kind not in ENCODERS]
    return f"torch_files/kosmos_torch.py has no encoder for {', '.join(unknown)}; add it there" if unknown else ""


TORCH_EXPORT = ExportFormat(lambda name: name, lambda model, dtype: dict(model=model.to_dict(), dtype=dtype), refusal)
REMOTE_CODE_EXPORT = ExportFormat(lambda name: f"model.{name}", _remote_code_config, refusal)
