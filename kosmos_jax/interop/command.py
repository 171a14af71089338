"""`kosmos export` and `kosmos import`."""

import re

from kosmos_jax.errors import UserError

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size_in_bytes(text: str) -> int:
    """The number of bytes in "5GB", "500MB" or "2GiB".

    Raises:
      UserError: it is none of the kind.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
    size = int(float(match[1]) * UNITS.get(match[2].upper(), 0)) if match else 0
    if not size:
        raise UserError(f"--max-shard-size {text}: write a size such as 5GB, 500MB or 2GiB")
    return size


def export(args) -> int:
    """Writes the export, says what it is, and with --verify compares it; 1 when it is not equal."""
    from kosmos_jax.checkpoint import step_directory
    from kosmos_jax.interop.export import export
    from kosmos_jax.interop.packages import needed
    from kosmos_jax.interop.stored import assert_arrays_intact

    to_verify = ["torch", "safetensors.torch" if args.to == "torch" else "transformers"]
    for module in ["tokenizers", *to_verify * args.verify]:
        needed(module)  # before hours of writing, not after
    assert_arrays_intact(step_directory(args.checkpoint), ("params", "average"))
    record = export(args.checkpoint, args.to, args.out, args.dtype, size_in_bytes(args.max_shard_size))
    print(f"{args.out}: step {record.step} of {record.directory} as {args.to}, {args.dtype}")
    if not args.verify:
        return 0
    from kosmos_jax.interop.verify import report, verify

    text, good = report(verify(args.checkpoint, args.to, args.out, args.dtype), args.dtype)
    print(text)
    return 0 if good else 1


def import_(args) -> int:
    """Makes a checkpoint of foreign weights and says what came in."""
    from kosmos_jax.config import load_config
    from kosmos_jax.interop.importing import import_weights

    if args.overrides and not args.config:
        raise UserError(f"{args.overrides[0]} changes a config, and there is no --config")
    config = load_config(args.config, args.overrides) if args.config else None
    options = dict(config=config, tokenizer=args.tokenizer, vocab_size=args.vocab_size)
    record = import_weights(args.kind, args.source, args.out, **options)
    text, perception = record.config.model.text, record.config.model.perception
    towers = [f"{name}: {x.encoder.kind} {x.encoder.layers} x {x.encoder.width}" for name, x in perception.items()]
    print(
        f"{args.out}: {args.kind} weights of {args.source}; {text.layers} x {text.width} decoder, "
        f"{text.vocab_size} ids, {', '.join(towers)}"
    )
    return 0
