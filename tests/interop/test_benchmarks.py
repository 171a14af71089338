"""The benchmark on a GPU compares like with like."""

import sys
from pathlib import Path
from types import SimpleNamespace


def test_neither_side_drops_attention_weights_and_both_drop_activations(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import contenders
    import gpu

    shape = gpu.shape_of(SimpleNamespace(tiny=True, rows=1, tokens=128, remat="full"))
    ours, theirs = contenders.our_config(shape), contenders.their_model(shape)
    rates = {type(module).__name__: module.dropout for module in theirs.modules() if hasattr(module, "dropout")}
    assert ours.text.attention_dropout == ours.perception.image.connector.dropout == rates["KosmosTextAttention"] == 0
    assert ours.text.dropout == rates["Kosmos2TextBlock"] == 0.1
    for name in ("contenders", "gpu"):
        monkeypatch.delitem(sys.modules, name)
