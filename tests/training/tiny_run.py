"""The demo made tiny: a whole training run, data and all, in seconds. Used with `--config`."""

from configs import demo


def get_config():
    config = demo.get_config()
    config.name = "tiny_run"
    config.model.text.update(width=32, layers=2, heads=2, ffn=64, dropout=0.1, vocab_size=407)
    config.model.perception.image.encoder.update(width=16, layers=2, heads=2, ffn=32)
    config.model.perception.image.connector.update(heads=2)
    config.data.update(seq_len=64, batch_rows=8, decode_threads=1)
    config.data.tokenizer.vocab_size = 400
    for name in ("captions", "interleaved"):
        config.data.sources[name].per_row.image = 5
    config.training.update(
        steps=24, log_every=1, eval_every=0, eval_batches=1, checkpoint_every=4, keep_last=3, keep_every=0, loss_chunk=0
    )
    config.training.optimizer.update(warmup_steps=4, learning_rate=3e-3)
    config.evaluation.update(tasks=())
    return config
