"""What an export holds beside weights, config.json and code: tokenizer, image processor, generation defaults, card.

The layout is that of transformers 4, `preprocessor_config.json` and no `processor_config.json`: 5 reads it as well.
"""

import json
from pathlib import Path
from typing import Any

from data_pipeline.tokenizer import Tokenizer
from kosmos_jax.interop import model_card, tokenizer_json
from kosmos_jax.model.perception.clip import PIXEL_MEAN, PIXEL_STD

SENTENCEPIECE = "sentencepiece.bpe.model"  # the published file's name
PROCESSORS = {"hf-kosmos2": "Kosmos2Processor", "hf-remote-code": "KosmosJaxProcessor"}


def write_files(out: Path, record, target: str) -> None:
    """Writes everything of `target` that this module knows into the folder `out`.

    Args:
      record: has `config`, `tokenizer` and `step`, as checkpoint.Record and checkpoint.Restored do.
      target: the format, a key of formats.EXPORTS.

    Raises:
      UserError: a package is missing, or the tokenizer is of a kind that cannot be written; see tokenizer_json.build.
    """
    tokenizer, model = record.tokenizer, record.config.model
    built = tokenizer_json.build(tokenizer, kosmos2=target == "hf-kosmos2")
    built.save(str(out / "tokenizer.json"))
    tokenizer.save(out / SENTENCEPIECE)
    (out / "README.md").write_text(model_card.text(record, target))
    if target not in PROCESSORS:
        return
    preprocessor = clip_preprocessor(model) if target == "hf-kosmos2" else remote_preprocessor(model)
    own = dict(processor_class=PROCESSORS[target])
    for name, config in (
        ("tokenizer_config", own | tokenizer_config(built)),
        ("preprocessor_config", own | preprocessor),
        ("generation_config", generation_config(tokenizer, model.text.vocab_size)),
    ):
        (out / f"{name}.json").write_text(json.dumps(config, indent=2) + "\n")


def tokenizer_config(built) -> dict[str, Any]:
    """The names of the special tokens, for tokenizer.json as `tokenizers` has it.

    The class is the one that takes tokenizer.json as it is, in every version. The published files name
    XLMRobertaTokenizer: in transformers 5 that class takes the pieces from tokenizer.json and normalises by itself.
    """
    return dict(
        tokenizer_class="PreTrainedTokenizerFast",
        **dict(bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>"),
        **dict(unk_token="<unk>", pad_token="<pad>", mask_token=tokenizer_json.MASK),
        padding_side="left",  # for generation
        clean_up_tokenization_spaces=False,  # decoding would turn "it 's" into "it's"
        model_input_names=["input_ids", "attention_mask"],
        added_tokens_decoder={i: token.__getstate__() for i, token in sorted(built.get_added_tokens_decoder().items())},
    )


def clip_preprocessor(model) -> dict[str, Any]:
    """An image is squashed to the size of `config.model` by PIL's bicubic filter.

    Not the published "use_square_size": transformers 5 takes that for 224 whatever the size says.
    """
    size = dict(zip(("height", "width"), model.perception.image.shape, strict=False))
    return dict(
        image_processor_type="CLIPImageProcessor",
        **dict(do_convert_rgb=True, do_resize=True, size=size, resample=3, do_center_crop=False, crop_size=size),
        **dict(do_rescale=True, rescale_factor=1 / 255),
        **dict(do_normalize=True, image_mean=PIXEL_MEAN, image_std=PIXEL_STD),
    )


def remote_preprocessor(model) -> dict[str, Any]:
    """The same by our own code, which takes what it does for granted; and the sizes of sound."""
    code, image = "processing_kosmos_jax.KosmosJax", model.perception.get("image", model_card.NO_IMAGE)
    config = dict(
        image_processor_type="KosmosJaxImageProcessor",
        auto_map=dict(AutoProcessor=f"{code}Processor", AutoImageProcessor=f"{code}ImageProcessor"),
        size=dict(height=image["shape"][0], width=image["shape"][1]),
        num_image_tokens=image["tokens"],
    )
    if audio := model.perception.get("audio"):
        config |= dict(audio_samples=audio.shape[0], num_audio_tokens=audio.tokens)
    return config


def generation_config(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """As here, no tag is generated but the end and a new line; transformers' Kosmos-2 does not read it (model card).

    Args:
      tokenizer: ours.
      vocab_size: of the model.
    """
    tags = {*range(tokenizer.unk + 1), *range(tokenizer.mask, vocab_size)} - {tokenizer.eos, tokenizer.line}
    return dict(
        bos_token_id=tokenizer.bos,
        pad_token_id=tokenizer.pad,
        eos_token_id=tokenizer.eos,
        suppress_tokens=sorted(tags),
    )
