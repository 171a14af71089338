import os
import subprocess
import sys
from pathlib import Path

import pytest

from kosmos_jax import cli
from kosmos_jax.errors import PassingError, UserError

DEMO = str(Path(__file__).parents[1] / "configs/demo.py")
SLOW_IMPORTS = {"jax", "flax", "tensorflow", "ml_collections", "numpy", "PIL", "torch"}


def python(code: str, **environment):
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[1]
    return subprocess.run(command, cwd=root, env=os.environ | environment, capture_output=True, text=True)


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["generate", "--help"], ["eval", "--help"]])
def test_help_imports_nothing_slow(argv):
    result = python(
        "import sys; from kosmos_jax import cli\n"
        f"try: cli.main({argv})\n"
        "except SystemExit as exit: assert exit.code == 0\n"
        "print('imported:', *sys.modules)"
    )
    assert "usage: kosmos" in result.stdout, result.stderr
    assert not SLOW_IMPORTS & set(result.stdout.rpartition("imported:")[2].split())


def test_the_package_itself_imports_nothing_slow():
    result = python("import sys, kosmos_jax; print(kosmos_jax.__version__, *sys.modules)")
    assert result.returncode == 0, result.stderr
    assert not SLOW_IMPORTS & set(result.stdout.split())


def test_a_mistyped_key_stops_before_jax_is_imported():
    result = python(
        "import sys; from kosmos_jax import cli\n"
        f"status = cli.main(['train', '--config', {DEMO!r}, '--workdir', 'nowhere', '--config.training.stepz=5'])\n"
        "print(status, 'jax' in sys.modules)"
    )
    assert result.stdout.split() == ["2", "False"], result.stderr
    assert result.stderr.startswith("kosmos train: error: --config.training.stepz: ")
    assert "did you mean --config.training.steps?" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_traceback_is_shown_when_asked_for():
    result = python(
        "from kosmos_jax import cli\n"
        "cli.main(['train', '--config', 'configs/nothing_like_it.py', '--workdir', 'nowhere'])",
        KOSMOS_TRACEBACK="1",
    )
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "configs/nothing_like_it.py does not exist" in result.stderr


@pytest.mark.parametrize(
    "argv, message",
    [
        (["trian"], "kosmos: error: no verb 'trian'; did you mean train?"),
        (["train", "--confg", "a"], "kosmos train: error: unknown flag --confg; did you mean --config?"),
        (["train", "--confg=a"], "kosmos train: error: unknown flag --confg; did you mean --config?"),
        (["train", "--config", "a"], "required: --workdir"),
        (["train", "--config", "a", "--workdir", "b", "c"], "unrecognized arguments: c"),
        (["train", "--config.training.steps"], "write --config.training.steps=VALUE"),
        (["report", "--config.training.steps=5"], "this verb has no config"),
        (["generate", "--max_new_tokens=5"], "did you mean --max-new-tokens?"),
        (["generate", "--checkpoint=a", "--prompt=b", "--beams=two"], "invalid int value: 'two'"),
        (["eval", "--checkpoint=a", "--split=tset"], "invalid choice: 'tset'"),
    ],
)
def test_wrong_arguments_end_with_status_2_and_say_why(argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_no_arguments_show_the_help(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2
    assert "continue prompts of text and media" in capsys.readouterr().out


def test_overrides_keep_their_order_and_their_spaces():
    argv = ["train", "--config.a.b=x y", "--config", "f.py", "--config.a.b={image} z", "--workdir", "w"]
    args = cli.parse(argv)
    assert args.overrides == ["--config.a.b=x y", "--config.a.b={image} z"]
    assert (args.config, args.workdir) == ("f.py", "w")


def test_generate_has_the_documented_defaults():
    args = vars(cli.parse(["generate", "--checkpoint", "c", "--prompt", "<image:a.png> one", "--prompt", "two"]))
    assert args["prompt"] == ["<image:a.png> one", "two"]
    del args["prompt"], args["overrides"]
    assert args == dict(
        verb="generate",
        checkpoint="c",
        **dict(prompts="", out="", max_new_tokens=64, n=1, beams=1, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0),
        **dict(repetition_penalty=1.0, no_repeat_ngram=0, choice=None, length_penalty=1.0, stop=[], seed=0),
        **dict(json=False, int8=[], coordinator="", processes=0, process_id=-1),
    )


@pytest.mark.parametrize(
    "error, status",
    [
        (UserError("the disk is full"), 2),
        (PassingError("nobody came"), 1),
        (OSError(28, "No space left on device", "out/x"), 1),
    ],
)
def test_an_error_for_the_user_is_one_line_and_its_status(error, status, monkeypatch, capsys):
    def run(args):
        raise error

    verb = cli.VERBS["generate"]._replace(run=run)
    monkeypatch.setitem(cli.VERBS, "generate", verb)
    assert cli.main(["generate", "--checkpoint=a", "--prompt=b"]) == status
    assert capsys.readouterr().err == f"kosmos generate: error: {error}\n"


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    def run(args):
        raise ValueError("a bug")

    monkeypatch.setitem(cli.VERBS, "generate", cli.VERBS["generate"]._replace(run=run))
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["generate", "--checkpoint=a", "--prompt=b"])


@pytest.mark.parametrize("returned, status", [(None, 0), (0, 0), (75, 75)])
def test_the_exit_status_is_the_verb_s(returned, status, monkeypatch):
    monkeypatch.setitem(cli.VERBS, "generate", cli.VERBS["generate"]._replace(run=lambda args: returned))
    assert cli.main(["generate", "--checkpoint=a", "--prompt=b"]) == status
