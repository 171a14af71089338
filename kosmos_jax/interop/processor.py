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
    tokenizer_json.build(record.tokenizer, kosmos2=target == "hf-kosmos2").save(str(out / "tokenizer.json"))
    record.tokenizer.save(out / SENTENCEPIECE)
    if target in PROCESSORS:
        write_tokenizer_config(out, record.tokenizer, target)
        write_preprocessor_config(out, record.config.model, target)
        write_generation_config(out, record.tokenizer, record.config.model.text.vocab_size)
    (out / "README.md").write_text(model_card.text(record, target))


def write_tokenizer_config(out: Path, tokenizer: Tokenizer, target: str) -> None:
    """tokenizer_config.json: the names of the special tokens.

    The class is the one that takes tokenizer.json as it is, in every version. The published files name
    XLMRobertaTokenizer: in transformers 5 that class takes the pieces from tokenizer.json and normalises by itself.

    Args:
      out: the export's folder.
      tokenizer: ours.
      target: the format, a key of formats.EXPORTS.
    """
    added = tokenizer_json.added_tokens(tokenizer, kosmos2=target == "hf-kosmos2")
    config = dict(
        tokenizer_class="PreTrainedTokenizerFast",
        processor_class=PROCESSORS[target],
        **dict(bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>"),
        **dict(unk_token="<unk>", pad_token="<pad>", mask_token=tokenizer_json.MASK),
        padding_side="left",  # for generation
        clean_up_tokenization_spaces=False,  # decoding would turn "it 's" into "it's"
        model_input_names=["input_ids", "attention_mask"],
        added_tokens_decoder={str(i): token for i, token in added.items()},
    )
    _write_json(out / "tokenizer_config.json", config)


def write_preprocessor_config(out: Path, model, target: str) -> None:
    """preprocessor_config.json: an image is squashed to the model's size by PIL's bicubic filter.

    Not the published "use_square_size": transformers 5 takes that for 224 whatever the size says.

    Args:
      model: config.model.
    """
    image = model.perception.get("image", {"shape": (0, 0), "tokens": 0})
    size = dict(height=image["shape"][0], width=image["shape"][1])
    if target == "hf-kosmos2":
        config = dict(
            image_processor_type="CLIPImageProcessor",
            processor_class=PROCESSORS[target],
            **dict(do_convert_rgb=True, do_resize=True, size=size, resample=3, do_center_crop=False, crop_size=size),
            **dict(do_rescale=True, rescale_factor=1 / 255),
            **dict(do_normalize=True, image_mean=PIXEL_MEAN, image_std=PIXEL_STD),
        )
    else:
        code = "processing_kosmos_jax.KosmosJax"
        config = dict(
            image_processor_type="KosmosJaxImageProcessor",
            processor_class=PROCESSORS[target],
            auto_map=dict(AutoProcessor=f"{code}Processor", AutoImageProcessor=f"{code}ImageProcessor"),
            size=size,
            num_image_tokens=image["tokens"],
        )
        if "audio" in model.perception:
            audio = model.perception.audio
            config |= dict(audio_samples=audio.shape[0], num_audio_tokens=audio.tokens)
    _write_json(out / "preprocessor_config.json", config)


def write_generation_config(out: Path, tokenizer: Tokenizer, vocab_size: int) -> None:
    """generation_config.json: as here, no tag is generated but the end and a new line.

    transformers' Kosmos-2 does not read it, see the model card.

    Args:
      out: the export's folder.
      tokenizer: ours.
      vocab_size: of the model.
    """
    tags = [*range(tokenizer.unk + 1), *range(tokenizer.mask, vocab_size)]
    config = dict(
        bos_token_id=tokenizer.bos,
        pad_token_id=tokenizer.pad,
        eos_token_id=tokenizer.eos,
        suppress_tokens=[i for i in tags if i not in (tokenizer.eos, tokenizer.line)],
    )
    _write_json(out / "generation_config.json", config)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
