"""KOSMOS-1 on the paper's corpora, or what stands for them: a line for each, with its weight and its limit of epochs.

    kosmos data prepare --config configs/kosmos1_web.py:/data --workdir W    # once
    kosmos train --config configs/kosmos1_web.py:/data --workdir W

In /data, NAME/ holds the files of a corpus as it was published, and prepared/NAME/ what is made of them. Books3 is no
longer distributed; OpenWebText2, Pile-CC, BookCorpus2, PG-19 and NIH ExPorter are parts of The Pile. The paper's two
crawls are FineWeb's dumps of the same months here, its interleaved pages OBELICS. Whoever has others changes a line.
"""

from configs import kosmos1

# Files, weight in percent of the text's tokens, how often each was seen in 300,000 steps: table 20 of the paper [P].
TEXT = dict(
    openwebtext2=("jsonl.zst", 21.8, 1.47),
    cc_2021_04=("parquet", 17.7, 0.21),
    books3=("jsonl.zst", 16.2, 0.63),
    cc_2020_50=("parquet", 14.7, 0.21),
    pile_cc=("jsonl.zst", 10.6, 0.21),
    realnews=("jsonl.gz", 10.2, 0.46),
    wikipedia=("parquet", 5.4, 1.29),
    bookcorpus2=("jsonl.zst", 1.1, 0.75),
    pg19=("jsonl.zst", 1.0, 0.38),
    cc_stories=("jsonl.gz", 1.0, 0.19),
    nih_exporter=("jsonl.zst", 0.2, 0.75),
)
# Millions of tokens in a step [P].
TEXT_TOKENS, CAPTION_TOKENS, PAGE_TOKENS = 0.5, 0.5, 0.2
# Documents for validation, by the hash of their names [ours].
SPLITS = dict(train="[0.1%:]", validation="[:0.1%]")


def get_config(root: str = "data"):
    config = kosmos1.get_config()
    config.name = "kosmos1_web"
    augment = config.data.sources.captions.augment
    total = sum(weight for _, weight, _ in TEXT.values())
    sources = {
        name: dict(
            kind=suffix.split(".")[0],
            template="{text}",
            share=TEXT_TOKENS * weight / total,
            epochs=epochs,
            per_row=dict(image=0),
            recipe="configs/recipes/kosmos1.py:text",
            **_places(root, name, suffix),
        )
        for name, (suffix, weight, epochs) in TEXT.items()
    }
    sources["captions"] = dict(
        kind="tar",  # as img2dataset writes LAION and COYO
        template="{image}{txt}",  # [P] the image comes first
        share=CAPTION_TOKENS,
        per_row=dict(image=24),  # a pair is 64 + 2 tokens, <s>, </s> and about 17 of caption
        augment=augment.to_dict(),
        recipe="configs/recipes/kosmos1.py:captions",
        **_places(root, "captions", "tar"),
    )
    sources["pages"] = dict(
        kind="obelics",
        share=PAGE_TOKENS,
        per_row=dict(image=18),
        augment=augment.to_dict(),
        recipe="configs/recipes/kosmos1.py:pages",
        **_places(root, "pages", "parquet"),
    )
    config.data.sources = sources
    return config


def _places(root: str, name: str, suffix: str) -> dict:
    splits = {split: f"{root}/{name}/*.{suffix}{share}" for split, share in SPLITS.items()}
    return dict(splits=splits, prepared=f"{root}/prepared/{name}")
