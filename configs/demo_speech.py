"""The demo with ears: spoken digits, handwritten digits and text in one model: `make demo-speech`.

The voices are eSpeak NG's (pip install 'kosmos_jax[speech]'). Real recordings, such as the free spoken digit dataset's:

    --config.data.sources.spoken.recordings=FOLDER --config.data.sources.spoken_documents.recordings=FOLDER
"""

from configs import demo
from configs.kosmos1_speech import RATE


def get_config():
    config = demo.get_config()
    config.name = "demo_speech"

    config.model.text.vocab_size += 2  # <audio> and </audio>
    config.model.perception.audio = dict(
        tokens=4,
        shape=(RATE * 4 // 5,),
        dtype="int16",
        encoder=dict(kind="whisper", mel_bins=40, width=64, layers=3, heads=4, ffn=256, top_layers=1),
        connector=dict(kind="perceiver", heads=4, layers=1, dropout=0.0),
    )
    config.init.audio = ""

    recordings = dict(recordings="", held_out="")
    images = config.data.sources.captions.augment.image.to_dict()
    sounds = dict(speed=(0.9, 1.1), gain_db=6.0, shift=0.5, noise=0.003)
    config.data.sources = dict(
        text=dict(kind="pydoc", share=0.125, per_row=dict(image=0, audio=0)),
        captions=dict(kind="digits", share=0.125, per_row=dict(image=10, audio=0), augment=dict(image=images)),
        spoken=dict(
            kind="spoken_digits", share=0.125, per_row=dict(image=0, audio=10), augment=dict(audio=sounds), **recordings
        ),
        spoken_documents=dict(
            kind="spoken_documents",
            share=0.625,
            per_row=dict(image=8, audio=8),
            augment=dict(image=dict(images), audio=dict(sounds)),
            **recordings,
        ),
    )
    config.training.update(steps=1700, eval_every=0)  # the evaluation comes after it
    config.evaluation.update(tasks=("caption", "spoken", "spoken_sum", "spoken_few_shot", "perplexity"), examples=300)
    return config
