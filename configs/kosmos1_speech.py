"""KOSMOS-1 that hears: Whisper-small's encoder beside CLIP, and captions of speech beside those of images.

Sizes of Whisper's encoders (openai/whisper, model.py): `--config configs/kosmos1_speech.py:large-v3`. A clip is 30 s
and becomes 64 vectors, 2.1 a second: enough for words and short commands. For dictation take shorter clips or more
vectors (Qwen2-Audio has 25 a second):

    --config.model.perception.audio.shape='(160000,)' --config.model.perception.audio.tokens=128   # 10 s, 12.8 a second
"""

from typing import NamedTuple

from configs import kosmos1

RATE = 16_000  # samples a second


class Size(NamedTuple):
    mel_bins: int
    width: int
    layers: int
    heads: int


SIZES = {
    "tiny": Size(80, 384, 4, 6),
    "base": Size(80, 512, 6, 8),
    "small": Size(80, 768, 12, 12),
    "medium": Size(80, 1024, 24, 16),
    "large-v3": Size(128, 1280, 32, 20),
}


def get_config(size: str = "small"):
    if size not in SIZES:
        raise ValueError(f"size {size!r} is none of {', '.join(SIZES)}")
    config = kosmos1.get_config()
    config.name = f"kosmos1_speech_{size}"
    config.model.text.vocab_size += 2  # <audio> and </audio>
    config.model.perception.audio = audio(SIZES[size])
    config.init.audio = ""  # Whisper's weights, as transformers or OpenAI publish them
    config.data.sources.speech = dict(
        kind="tfds",
        name="librispeech",
        splits=dict(train="train_clean360", validation="dev_clean", test="test_clean"),
        data_dir="",
        template="{speech}{text}",  # as with images, the sound comes first
        share=0.2,
        per_row=dict(audio=16),  # a sentence is 64 + 2 vectors, <s>, </s> and about 40 of text
        augment=dict(audio=dict(speed=(1.0, 1.0), gain_db=0.0, shift=0.0, noise=0.0)),
    )
    # As the paper does with CLIP: all but the last block and the LayerNorm after it.
    config.training.frozen += ("audio/encoder/trunk/.*", "audio/encoder/conv[12]/.*")
    return config


def audio(size: Size) -> dict:
    return dict(
        tokens=64,
        shape=(30 * RATE,),
        dtype="int16",
        encoder=dict(kind="whisper", **size._asdict(), ffn=4 * size.width, top_layers=1),
        connector=dict(kind="xconnector", heads=32, layers=1, dropout=0.1),
    )
