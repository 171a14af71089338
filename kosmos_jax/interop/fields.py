"""What the configs of others say: fields that we take over, fields that need one value, fields that change no result.

A field that is none of these is refused by name: imported without it, the model could be another one.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from kosmos_jax.errors import UserError
from kosmos_jax.model.perception.clip import PIXEL_MEAN, PIXEL_STD


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

    def read(self, section: Any, where: str, required: bool = False) -> dict[str, Any]:
        """Our key -> value, of the fields that are taken; none of them may be missing if they are `required`.

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

    def read_some(self, section: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The same of a section in which all else is harmless."""
        return self.read({key: section[key] for key in section.keys() & {*self.taken, *self.fixed}}, where)


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
_NO_PART_OF_IT = dict(add_cross_attention=False, cross_attention_hidden_size=None, pruned_heads={})
_IDS = dict(bos_token_id=0, pad_token_id=1, eos_token_id=2)

# Kosmos2Config and its sections, with transformers' defaults.
KOSMOS2 = Fields(
    taken=dict(latent_query_num=("tokens", 64)),
    fixed=_NO_PART_OF_IT | dict(model_type="kosmos-2"),
    harmless=TRANSFORMERS | {"text_config", "vision_config"},
)
KOSMOS2_TEXT = Fields(
    taken=dict(
        vocab_size=("vocab_size", 65037),
        embed_dim=("width", 2048),
        layers=("layers", 24),
        attention_heads=("heads", 32),
        ffn_dim=("ffn", 8192),
        max_position_embeddings=("max_positions", 2048),
        dropout=("dropout", 0.1),
        attention_dropout=("attention_dropout", 0.1),
    ),
    fixed=_NO_PART_OF_IT
    | _IDS
    | dict(activation_function="gelu", scale_embedding=True, layer_norm_eps=1e-5, activation_dropout=0, layerdrop=0),
    harmless=TRANSFORMERS,
)


def _clip_vision(width: int, layers: int, heads: int, ffn: int, patch: int) -> Fields:
    return Fields(
        taken=dict(
            image_size=("image_size", 224),
            patch_size=("patch_size", patch),
            hidden_size=("width", width),
            num_hidden_layers=("layers", layers),
            num_attention_heads=("heads", heads),
            intermediate_size=("ffn", ffn),
            hidden_act=("activation", "quick_gelu"),
        ),
        fixed=_NO_PART_OF_IT | dict(num_channels=3, layer_norm_eps=1e-5, attention_dropout=0, dropout=0),
        harmless=TRANSFORMERS,
    )


KOSMOS2_VISION = _clip_vision(1024, 24, 16, 4096, patch=14)
CLIP_VISION = _clip_vision(768, 12, 12, 3072, patch=32)
# A config of which nothing but the vision tower is read.
AROUND_VISION = Fields(
    fixed=_NO_PART_OF_IT,
    harmless=TRANSFORMERS
    | {"text_config", "vision_config", "text_config_dict", "vision_config_dict", "latent_query_num"},
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
PIXELS = Fields(
    fixed=dict.fromkeys(("image_mean", "mean"), list(PIXEL_MEAN)) | dict.fromkeys(("image_std", "std"), list(PIXEL_STD))
)
PIXEL_SECTIONS = {
    "preprocessor_config.json": "",
    "processor_config.json": "image_processor",
    "open_clip_config.json": "preprocess_cfg",
}

# What `kosmos export` writes around the sections that are ours.
SECTIONS = ("text", "perception")
REMOTE_CODE = Fields(fixed=_IDS | dict(model_type="kosmos-jax"), harmless=TRANSFORMERS | {*SECTIONS})
TORCH = Fields(harmless=("model", "dtype"))
TORCH_MODEL = Fields(harmless=(*SECTIONS, "dtype", "remat", "scan_unroll"))
