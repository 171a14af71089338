"""What foreign formats have in common: names by substitution, configs by fields, and what lies in a source."""

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kosmos_jax.errors import UserError
from kosmos_jax.interop.tensors import Tensor, read_json

CONFIG = "config.json"


class Opened(NamedTuple):
    """Weights that others publish.

    Attributes:
      tensors: by the names in the file, or by those that a fused one is taken apart into.
      sections: what of config.model the file decides, e.g. {"perception": {"image": {"encoder": {...}}}}.
      rename: our PyTorch name -> the name in the file.
      ignored: names in the file that carry nothing we need.
      head: the output layer, where the file may have one: it must be the embedding, as it is here.
      part: what our PyTorch names begin with of which the file has the tensors; "" for all.
      convolution: whether CLIP's patch embedding is a convolution there, not a linear layer.
      positions: a table that the file may have and we compute, by its name: it must be ours.
    """

    tensors: Mapping[str, Tensor]
    sections: dict[str, dict[str, Any]]
    rename: Callable[[str], str]
    ignored: re.Pattern = re.compile(r"(?!)")
    head: str = ""
    part: str = ""
    convolution: bool = False
    positions: Mapping[str, Any] = {}


class ExportFormat(NamedTuple):
    """A form of the weights for PyTorch.

    Attributes:
      rename: our PyTorch name -> the name in the file.
      config: (config.model, dtype) -> config.json.
      refusal: config.model -> why it cannot hold that model, with what to do instead; "" when it can.
      convolution: see `Opened`.
    """

    rename: Callable[[str], str]
    config: Callable[[Mapping, str], dict[str, Any]]
    refusal: Callable[[Mapping], str] = lambda model: ""
    convolution: bool = False


def chain(*substitutions: tuple[str, str | Callable]) -> Callable[[str], str]:
    """A function that substitutes one pattern after the other."""

    def rename(name: str) -> str:
        for pattern, replacement in substitutions:
            name = re.sub(pattern, replacement, name)
        return name

    return rename


# transformers' and fairseq's attention.
PROJECTIONS = (
    (r"\battention\.(query|key|value)\.", lambda match: f"self_attn.{match[1][0]}_proj."),
    (r"\battention\.out\.", "self_attn.out_proj."),
)


class Fields(NamedTuple):
    """A section of a config that others write.

    Attributes:
      taken: their field -> (our key, the value when the section lacks it).
      fixed: their field -> the only value that is implemented here.
      harmless: their fields that change no result.
    """

    taken: Mapping[str, tuple[str, Any]] = {}
    fixed: Mapping[str, Any] = {}
    harmless: Collection[str] = ()

    @classmethod
    def of_transformers(cls, **fields) -> "Fields":
        """Those of a config of transformers, which may have others: harmless ones, and what no model here has."""
        own = cls(**fields)
        return own._replace(fixed=NO_PART_OF_IT | own.fixed, harmless=TRANSFORMERS.union(own.harmless))

    def read(self, section: Any, where: str, required: bool = False) -> dict[str, Any]:
        """Our key -> value, of the fields that are taken; none of them may be missing if they are `required`.

        Args:
          section: of their config.
          where: file and key, for messages.
          required: whether each field that is taken must be there.

        Raises:
          UserError: names every field that is unknown, missing, of another type or of a value that is not implemented.
        """
        if not isinstance(section, Mapping):
            raise UserError(f"{where} is {section!r}; it must be an object with fields")
        problems = [f"{key} is missing" for key in self.taken if required and key not in section]
        for key, value in section.items():
            if key in self.fixed:
                if value != self.fixed[key]:
                    problems.append(f"{key} is {value!r} and must be {self.fixed[key]!r}")
            elif key in self.taken:
                kind = type(self.taken[key][1])
                fitting = isinstance(value, int | float if kind is float else kind)
                if not fitting or isinstance(value, bool) != (kind is bool):
                    problems.append(f"{key} is {value!r} and must be a value such as {self.taken[key][1]!r}")
            elif key not in self.harmless:
                problems.append(f"{key} ({value!r:.40}) is unknown; delete it if it changes no result")
        if problems:
            raise UserError(f"{where}: no such model can be imported:\n    " + "\n    ".join(problems))
        return {ours: section.get(theirs, default) for theirs, (ours, default) in self.taken.items()}

    def written(self, section: Mapping[str, Any]) -> dict[str, Any]:
        """The section of their config for ours."""
        fixed = {key: value for key, value in self.fixed.items() if key not in NO_PART_OF_IT}
        return fixed | {theirs: section[ours] for theirs, (ours, _) in self.taken.items()}


# PretrainedConfig of transformers 4.35 to 5.24: names, dtypes, initialisation, outputs, labels and generation.
TRANSFORMERS = frozenset(
    """_name_or_path architectures auto_map model_type transformers_version dtype torch_dtype torchscript use_bfloat16
    tf_legacy_loss _attn_implementation _attn_implementation_autoset attn_implementation initializer_range
    initializer_factor init_std logit_scale_init_value projection_dim
    id2label label2id problem_type finetuning_task task_specific_params prefix tokenizer_class return_dict
    output_attentions output_hidden_states output_scores return_dict_in_generate use_cache chunk_size_feed_forward
    is_decoder is_encoder_decoder tie_encoder_decoder tie_word_embeddings
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id
    bad_words_ids begin_suppress_tokens suppress_tokens do_sample early_stopping temperature top_k top_p typical_p
    diversity_penalty length_penalty exponential_decay_length_penalty repetition_penalty remove_invalid_values
    max_length min_length no_repeat_ngram_size encoder_no_repeat_ngram_size num_beams num_beam_groups
    num_return_sequences""".split()
)
# What a transformer of transformers may have and no model here has.
NO_PART_OF_IT = dict(add_cross_attention=False, cross_attention_hidden_size=None, pruned_heads={})
IDS = dict(bos_token_id=0, pad_token_id=1, eos_token_id=2)


def for_dtype(dtype: str) -> dict[str, Any]:
    """What every config.json for transformers says; "torch_dtype" is "dtype" for transformers before 4.56."""
    return dict(dtype=dtype, torch_dtype=dtype, tie_word_embeddings=True)


def beside(path: Path, name: str) -> Path:
    """The file of that name in a folder of weights, or in the folder of a file of weights."""
    return (path if path.is_dir() else path.parent) / name


class Source(NamedTuple):
    """Weights and what lies beside them.

    Attributes:
      path: of the weights, a file or a folder.
      tensors: by the names in the file.
    """

    path: Path
    tensors: Mapping[str, Tensor]

    def config(self, *keys: str) -> Any:
        """What the config.json has under some keys."""
        return read_json(beside(self.path, CONFIG), *keys)

    def where(self, *keys: str) -> str:
        """A section of the config.json, for messages."""
        return f"{beside(self.path, CONFIG)}: {'.'.join(keys)}".removesuffix(": ")

    def fields(self, table: Fields, *keys: str, required: bool = False) -> dict[str, Any]:
        """A section of the config.json by a table of its fields; see `Fields.read`."""
        return table.read(self.config(*keys), self.where(*keys), required)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor that has to be there."""
        if name not in self.tensors:
            raise UserError(f"{self.path} has no {name}: it is of another kind than --from says, or incomplete")
        return self.tensors[name].shape

    def layers(self, prefix: str) -> int:
        """How many different numbers follow a prefix among the names."""
        pattern = re.escape(prefix) + r"(\d+)\."
        return len({match[1] for name in self.tensors if (match := re.match(pattern, name))})

    def encoder(
        self, modality: str, section: dict[str, Any], prefix: str, rename: Callable[[str], str], ignored: str
    ) -> Opened:
        """An encoder alone, whose names begin with `prefix`; what begins otherwise is left.

        Args:
          modality: that it is for.
          section: what the file decides of the modality's section.
          prefix: of the names in the file.
          rename: our PyTorch name -> the name behind the prefix.
          ignored: a pattern of names that carry nothing we need.
        """
        return Opened(
            self.tensors,
            {"perception": {modality: section}},
            lambda name: prefix + rename(name),
            re.compile(rf"(?!{re.escape(prefix)}).*|{ignored}"),
            part=f"{modality}.encoder.",
            convolution=True,
        )
