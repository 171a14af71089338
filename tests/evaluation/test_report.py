import json

import numpy as np
from PIL import Image

from data_pipeline import builtin
from data_pipeline.documents import Media, Text
from kosmos_jax.cli import main
from kosmos_jax.evaluation.pictures import draw_answers
from kosmos_jax.evaluation.report import table
from kosmos_jax.evaluation.tasks import Example, Result


def results_with(wrong):
    """Forty answers of which the last ones are wrong, and a task without images."""
    images, _ = builtin.digits("test")
    examples = [
        Example((Media("image", image), Text("The digit is")), "one", "two" if i >= 40 - wrong else "one")
        for i, image in enumerate(images[:40])
    ]
    caption = Result((40 - wrong) / 40, 0.1, 40, examples=tuple(examples))
    return {"caption": caption, "perplexity": Result(12.345, 456.7, 1000, "perplexity")}


def test_the_table_has_a_line_for_each_task():
    assert table(results_with(wrong=1)) == "\n".join([
        "task        measure     value  guessing     n",
        "---------------------------------------------",
        "caption     accuracy    97.5%     10.0%    40",
        "perplexity  perplexity   12.3     456.7  1000",
    ])  # fmt: skip


def red_pixels(path):
    r, g, b = np.moveaxis(np.asarray(Image.open(path).convert("RGB")).astype(int), -1, 0)
    return int(((r > 180) & (g < 80) & (b < 80)).sum())


def test_wrong_answers_are_shown_in_red_wherever_they_come(tmp_path):
    draw_answers(results_with(wrong=0), tmp_path / "right.png")
    assert red_pixels(tmp_path / "right.png") == 0
    for wrong in (2, 30):
        draw_answers(results_with(wrong), tmp_path / "wrong.png")
        assert red_pixels(tmp_path / "wrong.png") > 100


def test_eval_prints_the_table_and_writes_results_and_pictures(workdir, capsys):
    assert main(["eval", "--checkpoint", str(workdir), "--split", "validation"]) == 0
    out = capsys.readouterr().out
    assert "split validation" in out and "few_shot" in out and "perplexity" in out
    results = json.loads((workdir / "results.json").read_text())
    assert results["split"] == "validation" and results["step"] == 0
    assert results["tasks"]["caption"]["n"] == 10 and len(results["tasks"]["sum"]["wrong"]) <= 10
    for name in ("answers.png", "losses.png"):
        assert min(Image.open(workdir / name).size) > 300


def test_eval_measures_what_another_config_says(workdir, capsys):
    override = "--config.evaluation.tasks=perplexity"
    assert main(["eval", "--checkpoint", str(workdir), override]) == 0
    assert "caption" not in capsys.readouterr().out


def test_generate_prints_a_json_object_for_each_prompt(workdir, tmp_path, capsys):
    (tmp_path / "digit.png").write_bytes(builtin.digits("test")[0][0])
    prompts = [f"<image:{tmp_path}/digit.png> The digit is", "Hello"]
    flags = [word for prompt in prompts for word in ("--prompt", prompt)]
    assert main(["generate", "--checkpoint", str(workdir), *flags, "--max-new-tokens", "4", "--json"]) == 0
    lines = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [line["prompt"] for line in lines] == prompts
    assert all(set(line) == {"prompt", "text", "tokens", "finish"} for line in lines)


def test_generate_tells_of_a_missing_image_before_it_loads_anything(capsys):
    assert main(["generate", "--checkpoint", "/no/where", "--prompt", "<image:gone.png> x"]) == 2
    assert "gone.png: no such file" in capsys.readouterr().err
