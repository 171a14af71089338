"""`kosmos import`: published weights as a checkpoint of ours; and an encoder straight into a fresh model."""

import logging
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict
from tqdm import tqdm

from data_pipeline.tokenizer import Tokenizer
from kosmos_jax import checkpoint
from kosmos_jax.config import apply_overrides, validate
from kosmos_jax.errors import UserError
from kosmos_jax.interop import names, tokenizer_json
from kosmos_jax.interop.export import complete_or_absent
from kosmos_jax.interop.processor import SENTENCEPIECE
from kosmos_jax.interop.sources import SOURCES, beside, check_pixels
from kosmos_jax.interop.tensors import FLOATS, Tensor, open_weights
from kosmos_jax.modality import KOSMOS2_TAGS, modalities
from kosmos_jax.model import Kosmos, abstract_model, parameters

TOKENIZER_JSON = "tokenizer.json"
SHOWN = 12
ROWS = 4096  # of a vocabulary's matrix, in memory at one time

log = logging.getLogger(__name__)


class Reader:
    """Our parameters, read out of foreign files part by part."""

    def __init__(self, kind: str, path: str | Path):
        """Opens the files; only their headers are read.

        Raises:
          UserError: unreadable, or not of this kind.
        """
        self.path = Path(path)
        self.source = SOURCES[kind](self.path, open_weights(self.path))
        self.tensors, self.sections = self.source.tensors, self.source.sections
        check_pixels(self.path)

    def check(self, shapes: Mapping) -> dict[str, names.Place]:
        """Compares the file with the parameters of a model, all of it before anything is made.

        Args:
          shapes: path -> anything with a `shape`.

        Returns:
          Our PyTorch name -> its place, for all that the file has.

        Raises:
          UserError: lists by name what is missing, surplus, of another shape or quantized; or the head is not tied.
        """
        places = {name: p for name, p in names.torch_names(shapes).items() if self.source.keeps(name)}
        wanted = {self.source.rename(name): self._foreign_shape(name, place.shape) for name, place in places.items()}
        known = {*wanted, self.source.head}
        surplus = [name for name in self.tensors if name not in known and not self.source.ignored.fullmatch(name)]
        missing = [name for name in wanted if name not in self.tensors]
        other = [
            f"{name} {list(self.tensors[name].shape)}, the model has {list(shape)}"
            for name, shape in wanted.items()
            if name in self.tensors and self.tensors[name].shape != shape
        ]
        given = {name: self.tensors[name] for name in [*wanted, self.source.head] if name in self.tensors}
        coded = [f"{name} {tensor.dtype}" for name, tensor in given.items() if tensor.dtype not in FLOATS]
        found = [("missing", missing), ("surplus", surplus), ("of another shape", other), ("not floats", coded)]
        problems = [f"{len(group)} {what}:\n    " + "\n    ".join(_shown(group)) for what, group in found if group]
        if problems:
            raise UserError(f"{self.path} does not fit, and nothing was imported.\n  " + "\n  ".join(problems))
        if self.source.head in self.tensors:
            self._check_head(self.tensors[self.source.head], self.tensors[self.source.rename("embedding.weight")])
        return places

    def _check_head(self, head: Tensor, embedding: Tensor):
        rows = (slice(start, start + ROWS) for start in range(0, embedding.shape[0], ROWS))
        same = head.shape == embedding.shape and all(
            np.array_equal(head.read((part, slice(None))), embedding.read((part, slice(None)))) for part in rows
        )
        if not same:
            raise UserError(
                f"{self.path}: {self.source.head} is not the embedding, and here the two are one (tied, as in all of "
                f"the family); if the model never used it, delete it from the file"
            )

    def _foreign_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return names.convolution_shape(shape) if self.source.convolution and name == names.PATCH else shape

    def _tensor(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        tensor = self.tensors[self.source.rename(name)]
        if self.source.convolution and name == names.PATCH:
            return names.from_convolution(tensor.read((slice(None),) * 4))[index]
        return tensor.read(index)

    def array(self, path: str, leaf, places: Mapping[str, names.Place]):
        """One of our parameters as float32 jax.Array of `leaf`'s shape and sharding; a process reads its own part."""
        layers = {place.layer: name for name, place in places.items() if place.path == path}

        def read(layer, index):
            name = layers[layer]
            if not places[name].transposed:
                return self._tensor(name, index)
            return self._tensor(name, index[::-1]).T

        def part(index):
            if None in layers:
                return np.ascontiguousarray(read(None, index), np.float32)
            chosen = range(leaf.shape[0])[index[0]]
            return np.stack([np.asarray(read(layer, index[1:]), np.float32) for layer in chosen])

        return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)


def _shown(group: list[str]) -> list[str]:
    return group if len(group) <= SHOWN else [*group[:SHOWN], f"... and {len(group) - SHOWN} more"]


def encoder_parameters(name: str, path, config, abstract: Mapping) -> dict[str, jax.Array]:
    """A published encoder for a fresh model: config.init.image and the like.

    Args:
      name: the modality's.
      path: a file or a folder.
      config: config.model.
      abstract: path -> jax.ShapeDtypeStruct with a sharding, all parameters of the model.

    Raises:
      UserError: no such encoder, or of other sizes than the config has.
    """
    section = config.perception[name]
    if section.encoder.kind not in SOURCES:
        raise UserError(f"init.{name}: nobody publishes weights of the encoder {section.encoder.kind!r}")
    reader = Reader(section.encoder.kind, path)
    ours, theirs = (flatten_dict(_plain(x), sep=".") for x in (section, reader.sections["perception"][name]))
    differ = [f"{key} {value}, config has {ours[key]}" for key, value in theirs.items() if ours[key] != value]
    if differ:
        raise UserError(f"init.{name} {path}: another encoder than model.perception.{name}: {'; '.join(differ)}")
    shapes = {path: leaf for path, leaf in abstract.items() if path.startswith(f"{name}/encoder/")}
    places = reader.check(shapes)
    return {path: reader.array(path, leaf, places) for path, leaf in shapes.items()}


def _plain(section) -> dict:
    return {key: _plain(value) if hasattr(value, "items") else value for key, value in section.items()}


def import_weights(kind: str, path, out, *, config=None, tokenizer=None, vocab_size: int = 0) -> checkpoint.Record:
    """Writes foreign weights as a checkpoint, step 0, into the new workdir `out`.

    Args:
      kind: a key of `sources.SOURCES`.
      path: the file or folder.
      out: a folder that does not exist or is empty.
      config: a config whose other sections the result takes; its model's sizes become the file's. Default:
        configs/kosmos1.py for `clip`, where all but the encoder is freshly drawn, else configs/kosmos2.py.
      tokenizer: a SentencePiece model file, a tokenizer.json made of one, or a folder with either; default: what lies
        beside the weights.
      vocab_size: drops ids at the end of the vocabulary, or adds rows to it, drawn as a fresh model's; 0 leaves it.

    Raises:
      UserError: anything that does not fit; nothing is written then.
    """
    reader = Reader(kind, path)
    config = _resized(_base_config(kind, config), reader.sections)
    validate(config, str(path), model_only=True)
    shapes = abstract_model(config.model)[1]
    places = reader.check(shapes)
    vocab_size = vocab_size or config.model.text.vocab_size
    tokenizer = _find_tokenizer(Path(path), tokenizer, vocab_size, modalities(config.model))
    described = dict(kosmos2_tags=KOSMOS2_TAGS[0] in tokenizer.tags, vocab_size=tokenizer.mask - 1)
    overrides = [f"data.tokenizer.{key}={value}" for key, value in described.items()]
    config = apply_overrides(config, [*overrides, f"model.text.vocab_size={vocab_size}"])
    given = sorted({place.path for place in places.values()})
    leaves = checkpoint.placed(shapes, dict.fromkeys(shapes, jax.sharding.SingleDeviceSharding(jax.local_devices()[0])))
    with complete_or_absent(Path(out)) as folder:
        bar = tqdm(given, f"reading {kind}", unit=" parameters", disable=None)
        params = {name: reader.array(name, leaves[name], places) for name in bar}
        params |= fresh_parameters(config, shapes.keys() - params.keys())
        params["embedding"] = _with_rows(params["embedding"], config)
        checkpoint.save_weights(folder, params, config, tokenizer)
    return checkpoint.read_record(out)


def _with_rows(embedding_VD: jax.Array, config) -> jax.Array:
    """The embedding with as many rows as config has ids: cut off, or added from a fresh model's, at the end."""
    count = config.model.text.vocab_size
    if count <= len(embedding_VD):
        return embedding_VD[:count]
    fresh_VD = fresh_parameters(config, {"embedding"})["embedding"]
    return fresh_VD.at[: len(embedding_VD)].set(embedding_VD)


def fresh_parameters(config, wanted) -> dict[str, jax.Array]:
    """Some of the parameters of a fresh model, as training would draw them."""
    if not wanted:
        return {}

    def draw(key):
        drawn = parameters(Kosmos(config.model, nnx.Rngs(key)))
        return {name: drawn[name] for name in wanted}

    return jax.jit(draw)(jax.random.key(config.seed))


def _find_tokenizer(path: Path, given, vocab_size: int, found) -> Tokenizer:
    place = Path(given or path)
    one = given and not place.is_dir()
    candidates = [place] if one else [beside(place, name) for name in (SENTENCEPIECE, TOKENIZER_JSON)]
    file = next((file for file in candidates if file.is_file()), None)
    if file is None:
        advice = "" if given else "Put it there (in transformers: processor.save_pretrained), or elsewhere. "
        raise UserError(
            f"no tokenizer: there is no {' and no '.join(map(str, candidates))}. {advice}--tokenizer takes a "
            f"SentencePiece model, a tokenizer.json, or a folder with one of them"
        )
    log.info("reading %s", file)
    is_json = file.suffix == ".json"
    model_bytes = tokenizer_json.sentencepiece_model(file) if is_json else Tokenizer.load(file).model_bytes
    tokenizers = [Tokenizer(model_bytes, tags, found) for tags in (False, True)]
    fitting = [tokenizer for tokenizer in tokenizers if tokenizer.size == vocab_size]
    if not fitting:
        plain, with_tags = (tokenizer.size for tokenizer in tokenizers)
        raise UserError(
            f"the vocabulary has {vocab_size} rows, and {file} has {plain} ids, or {with_tags} with the tags of "
            f"Kosmos-2; choose one with --vocab-size"
        )
    return fitting[0]


def _base_config(kind: str, config):
    if config is not None:
        return config
    from configs import kosmos1, kosmos2

    return apply_overrides((kosmos1 if kind == "clip" else kosmos2).get_config(), [])


def _resized(config, sections):
    tree = config.to_dict()
    _update(tree["model"], sections)
    text = tree["model"]["text"]
    for section in tree["model"]["perception"].values():
        encoder = section["encoder"]
        encoder["top_layers"] = min(encoder.get("top_layers", 0), encoder["layers"])
    if text["positions"] != "xpos":
        tree["data"]["seq_len"] = min(tree["data"]["seq_len"], text["max_positions"])
    return apply_overrides(tree, [])


def _update(tree: dict, changes: Mapping) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            _update(tree[key], value)
        else:
            tree[key] = value
