"""A small KOSMOS-1 on a real corpus, ten minutes on two CPU cores; configs/corpora/debian.py fetches it.

python configs/corpora/debian.py corpora/debian
kosmos train --config configs/debian.py:corpora/debian --workdir out/debian
"""

from configs import demo

# Of the documents, by the hash of their names.
SHARES = dict(train="[4%:]", validation="[:2%]", test="[2%:4%]")


def get_config(root: str = "corpora/debian"):
    config = demo.get_config()
    config.name = "debian"
    config.model.text.update(vocab_size=4007, width=192, ffn=768, heads=6)
    image = config.model.perception.image
    image.update(shape=(48, 48, 3), tokens=8)
    image.encoder.update(patch_size=8)
    image.connector.update(heads=6)

    data = config.data
    data.update(seq_len=256, batch_rows=12, bundle_rows=4, max_skipped=2000)
    data.tokenizer.vocab_size = 4000

    def of(files, shares=SHARES):
        return {split: f"{root}/usr/share/{files}{share}" for split, share in shares.items()}

    augment = dict(crop_scale=(0.8, 1.0), rotate=10.0)
    data.sources = dict(
        text=dict(
            kind="html",
            splits=of("doc/python3.11-doc/html/**/*.html"),
            recipe="configs/recipes/debian.py:text",
            share=0.34,
            per_row=dict(image=0),
        ),
        captions=dict(
            kind="table",
            splits=of("openclipart/png/captions.tsv"),
            template="{file:image}{caption}",
            recipe="configs/recipes/debian.py:captions",
            share=0.5,
            per_row=dict(image=10.5),
            augment=dict(image=augment),
        ),
        pages=dict(
            kind="html",
            splits=of(
                "doc/debian-handbook/html/**/*.html", dict(train="[20%:]", validation="[:10%]", test="[10%:20%]")
            ),
            leave_out="ul.docnav, #title",  # links to the chapters before and after
            recipe="configs/recipes/debian.py:pages",
            share=0.17,
            per_row=dict(image=0.75),
            augment=dict(image=dict(augment)),
        ),
    )
    config.training.update(steps=300, eval_every=300, checkpoint_every=150)
    config.evaluation.update(tasks=("captions", "perplexity"), examples=300)
    return config
