"""Text from prompts of text and media.

    model = load("out/demo")
    model.generate([picture, "The digit is"])

Read in this order: `prompts` (to arrays), `prefill` (reading on the device), `slots` with `sampling` and `beam`
(writing there), `device` (what lies on it), `reading` and `engine` (who does what when), `generator` (the API).
"""


def load(checkpoint, mesh=None, **engine):
    """A `Generator` from a workdir, its `checkpoints/`, or one step's folder.

        load("out/demo", mesh=dict(tensor=2, fsdp=2))

    Args:
      checkpoint: where it is.
      mesh: sizes of the axes of a mesh over all devices, see `parallel.mesh`: layers and heads are split over `tensor`,
        weights over `fsdp` too, and texts over `data`, which has the rest of the devices unless it is given. Every
        process reads the parts of the weights that its devices hold. None takes one device.
      **engine: see `engine.Engine`.

    Raises:
      UserError: there is no checkpoint, it cannot be read, or the mesh does not fit the devices.
    """
    from jax.sharding import NamedSharding

    from kosmos_jax.checkpoint import open_weights
    from kosmos_jax.inference.generator import Generator
    from kosmos_jax.parallel.mesh import make_mesh
    from kosmos_jax.parallel.sharding import parameter_specs
    from kosmos_jax.programs import keep_programs

    keep_programs()
    mesh = None if mesh is None else make_mesh(dict(data=-1, fsdp=1, tensor=1, context=1) | dict(mesh))

    def shardings(config, shapes):
        return {path: NamedSharding(mesh, spec) for path, spec in parameter_specs(config.model, shapes, mesh).items()}

    # One after another, each freed once it has the form that generation wants.
    record, weights = open_weights(checkpoint, shardings_of=None if mesh is None else shardings)
    return Generator(record.config.model, weights, record.tokenizer, **engine)


__all__ = ["load"]
