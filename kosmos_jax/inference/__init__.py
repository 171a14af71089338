"""Text from prompts of text and media.

    model = load("out/demo")
    model.generate([picture, "The digit is"])

Read in this order: `prompts` (to arrays), `sampling`, `decoding` (the loop on the device), `beam`, `engine`.
"""


def load(checkpoint):
    """A `Generator` from a workdir, its `checkpoints/`, or one step's folder.

    Raises:
      UserError: there is no checkpoint, or it cannot be read.
    """
    from kosmos_jax.checkpoint import restore
    from kosmos_jax.inference.generator import Generator
    from kosmos_jax.programs import keep_programs

    keep_programs()
    restored = restore(checkpoint)
    return Generator(restored.config.model, restored.params, restored.tokenizer)


__all__ = ["load"]
