"""KOSMOS-1 as the paper trained it (arXiv 2302.14045), and the place where every key is explained.

Where a value comes from: [P] the paper's text, [T17] its table of hyperparameters, [K2] the released code of Kosmos-2
(microsoft/unilm, kosmos-2/), [KG] that of Kosmos-G, [ours] neither, for the reason given.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            name="kosmos1",
            seed=0,  # [ours] weights, dropout and the order of the data all follow from it
            model=model(),
            init=dict(  # weights of a new run; a run that is resumed has its own
                checkpoint="",  # a checkpoint of the same model, from training or `kosmos import`
                image="",  # a file or folder with CLIP's vision tower, as transformers, OpenAI or open_clip publish it
            ),
            data=data(),
            training=training(),
            mesh=dict(data=1, fsdp=-1, tensor=1, context=1),  # devices along each axis; one of them may be -1: the rest
            evaluation=dict(
                tasks=("perplexity",),  # run with `kosmos eval`, and every training.eval_every steps
                examples=1000,  # of each task
            ),
        )
    )


def model() -> dict:
    return dict(
        dtype="auto",  # of activations: bfloat16 on accelerators, float32 on CPU; parameters are float32
        remat="full",  # [K2] keep only each layer's input for the backward pass; "dots" or "none" where memory allows
        scan_unroll=1,  # layers in one turn of the loop; more compile longer and can run faster
        text=dict(
            vocab_size=64_007,  # [T17] 64,000 pieces, re-numbered, with <mask> and five tags
            width=2048,  # [P] [T17]
            layers=24,  # [P] [T17]
            heads=32,  # [P] [T17]
            ffn=8192,  # [P] [T17]
            max_positions=2048,  # [T17] for sinusoidal positions; xPos has 32,768
            positions="xpos",  # [T17]; the released Kosmos-2 ran "sinusoidal"
            dropout=0.1,  # [T17]
            attention="auto",  # kernel: "splash" on TPU, "triton" on GPU, "reference" anywhere; "auto" takes what suits
            attention_dropout=0.0,  # [K2] none with its kernels; [T17] has 0.1, which here means "reference"
            init="torchscale",  # [K2] the released sub-LN initialisation; "magneto" is that of the paper's appendix
        ),
        perception=dict(  # what is perceived beside text, by name; configs/kosmos1_speech.py has sound too
            image=dict(
                tokens=64,  # [T17] an image's vectors in the decoder's stream
                shape=(224, 224, 3),  # [P]
                dtype="uint8",
                encoder=dict(  # ViT-L/14 [P]
                    kind="clip",
                    patch_size=14,
                    width=1024,  # [P]
                    layers=24,
                    heads=16,
                    ffn=4096,
                    activation="quick_gelu",  # [K2] what OpenAI's CLIP was trained with
                    top_layers=1,  # [P] the last blocks, kept apart because they alone train
                ),
                connector=dict(
                    kind="xconnector",  # [K2] one cross-attention; "perceiver" is Flamingo's, which the paper cites
                    heads=32,  # [K2] the decoder's
                    layers=1,  # of "perceiver" alone
                    dropout=0.1,  # [K2] that of attention
                ),
            ),
        ),
    )


def data() -> dict:
    no_change = dict(
        crop_scale=(1.0, 1.0),  # [K2] share of the area that a random crop keeps; 1 is CLIP's resize and center crop
        rotate=0.0,  # [K2] at most so many degrees
    )
    return dict(
        seq_len=2048,  # [T17]
        batch_rows=576,  # [P] 1.2M tokens: 240 + 240 + 96 rows of 2,048, i.e. 0.5M, 0.5M and 0.2M tokens
        bundle_rows=8,  # [ours] rows of a source that share places for items of media
        isolate_documents=True,  # [ours] documents in one row do not see each other; the paper's packing lets them
        cache="",  # folder of prepared sources and plans; "" is WORKDIR/cache
        max_skipped=10_000,  # [ours] records that may be unreadable before the run stops
        decode_threads=16,  # batches read and decoded at the same time, in each process
        prefetch=2,  # batches that wait ready
        tokenizer=dict(
            path="sentencepiece.bpe.model",  # [K2] the published one, from unilm's kosmos-2/data; "" trains one
            vocab_size=64_000,  # [T17] pieces, when training one
            kosmos2_tags=False,  # 1,030 more ids for grounding
        ),
        # Where each kind of data comes from. The paper's own corpora are not public; these have the same form.
        # `share`: rows of every step by proportion, here millions of tokens [P]; `per_row`: places for media in a row;
        # `augment`: how training changes them.
        sources=dict(
            text=dict(
                kind="tfds",
                name="c4/en:3.1.0",
                splits=dict(train="train[1000:]", validation="train[:1000]", test="validation"),  # TFDS's names
                data_dir="",  # "" is TFDS's default
                template="{text}",
                share=0.5,
                per_row=dict(image=0),
            ),
            captions=dict(
                kind="tfds",
                name="laion400m/images:1.0.0",
                splits=dict(train="train[20000:]", validation="train[:10000]", test="train[10000:20000]"),
                data_dir="",
                template="{image}{caption}",  # [P] the image comes first
                share=0.5,
                per_row=dict(image=24),  # a pair is 64 + 2 tokens, <s>, </s> and about 17 of caption
                augment=dict(image=no_change),
            ),
            interleaved=dict(
                kind="tfds",
                name="interleaved_pages",  # yours: a builder with a sequence of images and one of texts
                splits=dict(train="train[20000:]", validation="train[:10000]", test="train[10000:20000]"),
                data_dir="",
                interleaved=("images", "texts"),  # as in OBELICS: of each pair one is there
                share=0.2,
                per_row=dict(image=18),  # [P] at most 5 in a document
                augment=dict(image=dict(no_change)),  # a copy: one object in two places would change in both
            ),
        ),
    )


def training() -> dict:
    return dict(
        steps=300_000,  # [P]
        microbatches=1,  # gradients of so many parts of the batch are summed before an update
        log_every=10,
        profile=(0, 0),  # first and last step of a trace for TensorBoard and xprof; (0, 0): none
        join_seconds=300.0,  # [ours] how long the processes of a job wait at the start until all have come
        wait_seconds=7200.0,  # [ours] and then for one that still prepares data or reads a checkpoint
        hang_seconds=1800.0,  # [ours] the process ends when no step, evaluation or checkpoint did for so long; 0: never
        wandb=False,  # metrics to Weights & Biases too
        eval_every=1000,  # 0: never
        eval_batches=8,
        checkpoint_every=1000,
        keep_last=3,  # checkpoints
        max_failed_saves=5,  # [ours] the run ends when so many checkpoints in a row cannot be written
        keep_every=50_000,  # and those of steps that this divides; 0 for none
        loss_chunk=4096,  # tokens of a device whose scores exist at once, against memory; 0 for all
        ema_decay=0.0,  # [ours] 0: no moving average of the weights
        max_nonfinite=10,  # [ours] skipped updates in a row before the run stops
        spike_factor=0.0,  # [ours] skip an update whose gradient is so many times the usual; 0: never
        # [P] all of CLIP but its last layer; [KG] that is the last block and ln_post.
        frozen=("image/encoder/trunk/.*", "image/encoder/(class_token|positions|patch|ln_pre)(/.*)?"),
        optimizer=dict(
            name="adamw",  # [P]
            learning_rate=2e-4,  # [P] at its peak, then linear to 0
            warmup_steps=375,  # [P]
            b1=0.9,  # [P]
            b2=0.98,  # [P]
            eps=1e-6,  # [K2] [KG]
            weight_decay=0.01,  # [P]; on every parameter [K2]
            clip_norm=2.0,  # [K2] [KG]
        ),
    )
