"""`kosmos import`: published weights as a checkpoint of ours; and an encoder straight into a fresh model."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from configs import kosmos1, kosmos1_speech, kosmos2
from data_pipeline.tokenizer import Tokenizer
from kosmos_jax import checkpoint
from kosmos_jax.config import apply_overrides, validate
from kosmos_jax.config_checks import flat
from kosmos_jax.errors import UserError
from kosmos_jax.interop import tokenizer_json
from kosmos_jax.interop.export import complete_or_absent
from kosmos_jax.interop.formats import ENCODER_FORMATS
from kosmos_jax.interop.formats.base import beside
from kosmos_jax.interop.processor import SENTENCEPIECE
from kosmos_jax.interop.stored import write_weights
from kosmos_jax.interop.weights import Reader
from kosmos_jax.modality import KOSMOS2_TAGS, modalities
from kosmos_jax.model import Kosmos, abstract_model, parameters

# Bytes of fresh parameters that are in memory at one time.
FRESH = 2**29
TOKENIZER_JSON = "tokenizer.json"

log = logging.getLogger(__name__)


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
    if ENCODER_FORMATS.get(section.encoder.kind) != name:
        known = ", ".join(f"init.{modality} of {kind}" for kind, modality in ENCODER_FORMATS.items())
        raise UserError(f"init.{name}: no published weights can be read for it here, only {known}")
    reader = Reader(section.encoder.kind, path)
    ours, theirs = flat(section), flat(reader.sections["perception"][name])
    differ = [f"{key} {value}, config has {ours[key]}" for key, value in theirs.items() if ours[key] != value]
    if differ:
        raise UserError(f"init.{name} {path}: another encoder than model.perception.{name}: {'; '.join(differ)}")
    shapes = {path: leaf for path, leaf in abstract.items() if path.startswith(f"{name}/encoder/")}
    reader.check(shapes)
    # A process reads the parts that it holds.
    return {
        path: jax.make_array_from_callback(leaf.shape, leaf.sharding, partial(reader.part, path))
        for path, leaf in shapes.items()
    }


def import_weights(kind: str, path, out, *, config=None, tokenizer=None, vocab_size: int = 0) -> checkpoint.Record:
    """Writes foreign weights as a checkpoint, step 0, into the new workdir `out`.

    Args:
      kind: a key of `formats.IMPORTS`.
      path: the file or folder.
      out: a folder that does not exist or is empty.
      config: a config whose other sections the result takes; its model's sizes become the file's. Default:
        configs/kosmos1.py for `clip` and kosmos1_speech.py for `whisper`, where all but the encoder is freshly drawn,
        else configs/kosmos2.py.
      tokenizer: a SentencePiece model file, a tokenizer.json made of one, or a folder with either; default: what lies
        beside the weights.
      vocab_size: drops ids at the end of the vocabulary, or adds rows to it, drawn as a fresh model's; 0 leaves it.

    Raises:
      UserError: anything that does not fit; nothing is written then.
    """
    reader = Reader(kind, path)
    if config is None:
        config = {"clip": kosmos1, "whisper": kosmos1_speech}.get(kind, kosmos2).get_config()
    config = _resized(config, reader.sections)
    validate(config, str(path), model_only=True)
    shapes = abstract_model(config.model)[1]
    reader.check(shapes)
    vocab_size = vocab_size or config.model.text.vocab_size
    tokenizer = _find_tokenizer(Path(path), tokenizer, vocab_size, modalities(config.model))
    described = dict(kosmos2_tags=KOSMOS2_TAGS[0] in tokenizer.tags, vocab_size=tokenizer.mask - 1)
    overrides = [f"data.tokenizer.{key}={value}" for key, value in described.items()]
    config = apply_overrides(config, [*overrides, f"model.text.vocab_size={vocab_size}"])
    fresh = _Fresh(config, reader.found)

    def part(path, index):
        if path not in reader.found:
            return fresh(path)[index]
        start, stop, had = index[0].start, index[0].stop, shapes[path].shape[0]
        if stop <= had:
            return reader.part(path, index)
        added = fresh(path)[max(start, had) : stop]  # ids that the file does not have
        read = [reader.part(path, (slice(start, had), *index[1:]))] if start < had else []
        return np.concatenate([*read, added])

    with complete_or_absent(out) as folder:
        write_weights(folder, part, config, tokenizer)
    return checkpoint.read_record(out)


class _Fresh:
    """Parameters of a fresh model, as training would draw them, a few at a time: path -> float32 array."""

    def __init__(self, config, given: Mapping):
        self._config, self._given, self._drawn = config, given, {}
        self._bytes = {path: 4 * leaf.size for path, leaf in abstract_model(config.model)[1].items()}

    def __call__(self, path: str) -> np.ndarray:
        if path not in self._drawn:
            # Neighbours are drawn together: each time the initial values of all of the model are traced.
            wanted, room = {path}, FRESH - self._bytes[path]
            for other in [name for name in self._bytes if name not in self._given and name > path]:
                room -= self._bytes[other]
                wanted |= {other} if room > 0 else set()

            def draw(key):
                drawn = parameters(Kosmos(self._config.model, nnx.Rngs(key)))
                return {name: drawn[name] for name in wanted}

            self._drawn = {}  # before others are there
            self._drawn = jax.device_get(jax.jit(draw)(jax.random.key(self._config.seed)))
        return self._drawn[path]


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


def _resized(config, sections):
    """A config whose model has the sizes that a file decides, and what follows from them."""
    tree = config.to_dict()
    if "vocab_size" in sections.get("text", {}):  # a complete model: it has no other modalities than its own
        kept = tree["model"]["perception"]
        tree["model"]["perception"] = {name: kept.get(name, {}) for name in sections["perception"]}
    model = unflatten_dict(flatten_dict(tree["model"], keep_empty_nodes=True) | flatten_dict(sections))
    for section in model["perception"].values():
        encoder = section["encoder"]
        if "top_layers" in encoder:
            encoder["top_layers"] = min(encoder["top_layers"], encoder["layers"])
    if model["text"]["positions"] != "xpos":
        tree["data"]["seq_len"] = min(tree["data"]["seq_len"], model["text"]["max_positions"])
    return apply_overrides(tree | dict(model=model), [])
