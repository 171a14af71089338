"""A small KOSMOS-1 on data that is in the Python packages already: `make demo`, minutes on two CPU cores."""

from configs import kosmos1


def get_config():
    config = kosmos1.get_config()
    config.name = "demo"

    model = config.model
    model.dtype, model.remat = "float32", "none"
    model.text.update(width=128, layers=4, heads=4, ffn=512, vocab_size=1007, dropout=0.0, attention_dropout=0.0)
    image = model.perception.image
    image.update(shape=(16, 16, 3), tokens=4)
    image.encoder.update(patch_size=4, width=96, layers=3, heads=4, ffn=384)
    # From scratch the perceiver sees sooner than the released connector: its LayerNorms lift the features, which have
    # unit length, to the size of the queries.
    image.connector.update(kind="perceiver", heads=4, layers=1, dropout=0.0)

    data = config.data
    data.update(seq_len=128, batch_rows=8, max_skipped=0, decode_threads=2)
    data.tokenizer.update(path="", vocab_size=1000)
    augment = dict(crop_scale=(0.7, 1.0), rotate=15.0)
    data.sources = dict(
        text=dict(kind="pydoc", share=0.125, per_row=dict(image=0)),
        captions=dict(kind="digits", share=0.375, per_row=dict(image=10), augment=dict(image=augment)),
        interleaved=dict(kind="digit_documents", share=0.5, per_row=dict(image=14), augment=dict(image=dict(augment))),
    )

    config.training.update(
        steps=1500,
        log_every=20,
        eval_every=750,
        eval_batches=4,
        checkpoint_every=300,
        keep_last=2,
        keep_every=0,
        loss_chunk=0,
        frozen=(),  # CLIP's weights are not there: all of it learns
    )
    config.training.optimizer.update(learning_rate=1e-3, warmup_steps=50)
    config.evaluation.update(tasks=("caption", "sum", "few_shot", "perplexity"), examples=300)
    return config
