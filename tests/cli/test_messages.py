"""What is said beside the answers, and what is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.helpers import CUT, finds, picture, results
from tests.cli.test_processes import environment, start

from paliglass import Box, Detection
from paliglass.cli.app import explain
from paliglass.tasks.answering import TextTask
from paliglass.tasks.results import Answer


@pytest.fixture
def says(monkeypatch):
    """`says(text)` makes the model say that of every picture."""
    return lambda text, reason="stop": monkeypatch.setattr(
        TextTask, "result", lambda *_: Answer(text, 0.5, reason)
    )


class TestNotes:
    def test_an_empty_answer_is_told(self, cli, says):
        picture("a.png")
        says("")
        assert cli("read", "a.png") == (0, "\n", "note: a.png: the answer is empty\n")

    def test_a_cut_answer_is_told_and_marked(self, cli, says):
        picture("a.png")
        says("a do", "length")
        assert cli("caption", "a.png") == (0, "a do\n", CUT.format("a.png"))
        assert cli("caption", "a.png", "--json").records()[0]["finish_reason"] == "length"
        says("a dog")
        assert cli("caption", "a.png").err == ""
        assert cli("caption", "a.png", "--json").records()[0]["finish_reason"] == "stop"

    def test_several_pictures_are_told_of_together(self, cli, says):
        for i in range(5):
            picture(f"d/{i}.png")
        says("")
        [line] = cli("caption", "d").err.splitlines()
        names = "d/0.png, d/1.png, d/2.png and 2 more"
        assert line == f"note: 5 of 5 pictures ({names}): the answer is empty"

    def test_nothing_found_is_told_with_the_score_that_would_do(self, cli, monkeypatch):
        picture("a.png")
        finds(monkeypatch)
        told = cli("detect", "a.png", "dog")
        assert (told.code, told.out) == (0, "")
        assert told.err == (
            "note: a.png: nothing found with a score of 0.05 or more; --min-score 0 shows all\n"
        )
        all_there_is = cli("detect", "a.png", "dog", "--min-score", "0").err
        assert all_there_is == "note: a.png: nothing found\n"

    @pytest.mark.parametrize("label", ["dog, cat", "dog,cat", "dog , cat"])
    def test_a_comma_in_a_label_is_told(self, cli, monkeypatch, label):
        picture("a.png")
        asked = finds(monkeypatch, Detection("x", Box(2, 2, 20, 20), 0.5))
        told = cli("detect", "a.png", label).err
        assert told == f'note: "{label}" is one label; several are written "dog ; cat"\n'
        assert cli("detect", "a.png", "dog ; cat").err == ""
        assert asked == [[label], ["dog", "cat"]]

    @pytest.mark.parametrize(
        ("kind", "more"), [("coco", "coco.json"), ("csv", "results.csv"), ("yolo", "labels/")]
    )
    def test_where_files_went_is_told(self, cli, monkeypatch, kind, more):
        picture("a.png")
        finds(monkeypatch, Detection("x", Box(2, 2, 20, 20), 0.5))
        told = cli("detect", "a.png", "x", "-o", "o", "-f", kind).err
        assert told.startswith("note: o: results.jsonl, drawings/, ")
        assert more in told
        assert (Path("o") / more).exists()

    def test_quiet_says_nothing_but_errors(self, cli, says):
        picture("a.png")
        says("")
        assert cli("caption", "a.png", "gone.png", "-q", terminal=True).err.splitlines() == [
            "error: gone.png: no such file",
            "error: 1 of 2 pictures could not be read",
        ]

    def test_verbose_tells_what_was_loaded(self, cli, says, model_folder):
        picture("a.png")
        says("a dog")
        told = cli("caption", "a.png", "-v").err
        assert f"detail: loading {model_folder}: " in told
        assert "detail: PaliGemma: " in told
        assert "tokens/s" in told
        assert cli("caption", "a.png", "-v", "-q").code == 2

    def test_loading_is_shown_at_a_terminal_only(self, cli, says, model_folder):
        picture("a.png")
        says("a dog")
        assert "loading" in cli("caption", "a.png", "--json", terminal=True).err
        assert cli("caption", "a.png", "--json").err == ""


def test_a_terminal_does_not_obey_names_and_answers(cli, says):
    names = [str(picture(f"{i}\x1b[2J.png")) for i in range(2)]
    says("a\x1b[31m dog")
    assert "\x1b[2J" in cli("caption", *names).out  # a program gets names as they are
    for quiet in ((), ("-q",)):  # with a bar, which prints above itself, and without
        shown = cli("caption", *names, *quiet, terminal=True)
        both = shown.out + shown.err
        assert "\x1b[2J" not in both
        assert "\x1b[31m" not in both
    assert "\\x1b[2J.png\ta\\x1b[31m dog" in shown.out
    assert "\x1b[2J" not in cli("caption", "gone\x1b[2J.png").err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("caption", "a.png", "--lang", "xx"), "'xx' is no language code"),
        (("ask", "a.png", ""), "the question is empty"),
        (("ask", "a.png", "--question", " "), "the question is empty"),
        (("caption", "a.png", "--lang", "english"), "'english' is no language code"),
        (("ask", "a.png", "what?", "--question", "\n"), "the question is empty"),
        (("embed", "a.png", "--out", "e.npy"), "embed writes .safetensors files"),
        (("embed", "a.png", "--out", "e.csv"), "embed writes .safetensors files"),
        (("embed", "a.png", "--out", "e.safetensors.npz"), "embed writes .safetensors files"),
        (("embed", "-", "--out", "e.safetensors"), "give a file"),
        (("similarity", "-", "-t", "dog"), "give a file"),
        (("caption", "a.png", "--model", "nano"), "nano: no such folder"),
    ],
)
def test_what_cannot_be_is_said_before_torch_is_imported(arguments, said):
    picture("a.png")
    code = f"""if True:
        import sys
        from paliglass.cli import main
        try:
            main({list(arguments)!r})
        except SystemExit as ending:
            print(ending.code, "torch" in sys.modules)
    """
    out, err = start("-c", code).communicate()
    assert out.split() in (["1", "False"], ["2", "False"])
    assert said in " ".join(err.split())


@pytest.mark.parametrize("lang", ["en", "de", "zh-Hans", "fil"])
def test_languages_that_there_are(cli, lang):
    picture("a.png")
    assert cli("caption", "a.png", "--lang", lang).code == 0


class TestTogether:
    def test_one_answer_about_all(self, cli, model_folder):
        from paliglass import load

        names = [str(picture(f"{colour}.png", colour)) for colour in ("red", "blue")]
        [record] = cli("ask", "--together", *names, "what differs?", "--json").records()
        model = load(model_folder)
        [both] = model.ask([names], "what differs?", max_new_tokens=6)
        assert record["answer"] == both
        assert both != model.ask(names[0], "what differs?", max_new_tokens=6)
        assert (record["file"], record["files"]) == (names[0], names)

    def test_it_resumes_and_other_pictures_are_another_job(self, cli):
        names = [str(picture(f"{colour}.png", colour)) for colour in ("red", "blue", "lime")]
        run = ("ask", "--together", "why?", "--out", "o", "--resume")
        for pictures, count in ((names[:2], 1), (names[:2], 1), (names, 2)):
            assert cli(*run[:2], *pictures, *run[2:]).code == 0
            assert len(results("o")) == count

    def test_the_one_answer_stands_beside_no_name(self, cli):
        names = [str(picture(f"{colour}.png", colour)) for colour in ("red", "blue")]
        [record] = cli("ask", "--together", *names, "what differs?", "--json").records()
        assert cli("ask", "--together", *names, "what differs?").out == f"{record['answer']}\n"

    def test_a_broken_one_breaks_it(self, cli):
        picture("a.png")
        result = cli("ask", "--together", "a.png", "gone.png", "why?")
        assert (result.code, result.out) == (1, "")
        assert result.err.startswith("error: gone.png: no such file\n")


class TestMissing:
    """A module that is not installed: what to install is said in one place."""

    @pytest.mark.parametrize(
        ("module", "command"),
        [
            ("rapidfuzz", "pip install 'paliglass[train]' or 'paliglass[eval]'"),
            ("yaml", "pip install 'paliglass[train]'"),
            ("faster_coco_eval", "pip install 'paliglass[eval]'"),
            ("datasets.utils", "pip install 'paliglass[datasets]'"),
            ("PIL.Image", "pip install paliglass"),
            ("fastapi", "pip install 'paliglass[serve]'"),
            ("transformers", "pip install transformers"),
            ("unheard_of", "pip install unheard_of"),
        ],
    )
    def test_the_extra_that_has_it_is_named(self, module, command):
        told = explain(ModuleNotFoundError(f"No module named {module!r}", name=module))
        assert told.endswith(f", which is not installed: {command}")
        assert "\n" not in told

    @pytest.mark.parametrize(
        ("module", "arguments"),
        [
            ("datasets", ["data", "fetch", "a/b", "o"]),
            ("fastapi", ["serve"]),
            ("pyarrow", ["annotate", "d", "--task", "caption en", "--out", "o"]),
            ("pypdfium2", ["caption", "a.pdf"]),
            ("yaml", ["eval", "--data", "data.yaml"]),
            ("yaml", ["train", "finetune", "--config", "c.yaml"]),
        ],
    )
    def test_every_command_says_it_alike(self, module, arguments):
        picture("d/a.png")
        for name, text in (("a.pdf", "%PDF-1.7\n"), ("data.yaml", "names: [a]"), ("c.yaml", "")):
            Path(name).write_text(text)
        # A process of its own: what this one has imported can no longer be missing.
        code = f"import sys; sys.modules[{module!r}] = None; from paliglass.cli import main; main()"
        _, err = start("-c", code, *arguments).communicate(timeout=300)
        name = {"yaml": "pyyaml"}.get(module, module)
        assert f"this needs {name}, which is not installed: pip install " in err


@pytest.mark.skipif(os.name != "posix", reason="pipes break differently elsewhere")
def test_a_reader_that_leaves_ends_no_run_that_is_kept():
    for i in range(6):
        picture(f"d/{i}.png")
    arguments = ("caption", "d", "--batch-size", 1, "--max-new-tokens", 4, "--out", "o")
    process = start("-m", "paliglass", *arguments)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(300) == 0
    assert len(results("o")) == 6
    assert process.stderr is not None
    process.stderr.close()


@pytest.mark.skipif(os.name != "posix", reason="a shell's redirection")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams(closed):
    picture("a.png")
    command = f"{sys.executable} -m paliglass caption a.png --max-new-tokens 2 --out o {closed}"
    done = subprocess.run(
        ["bash", "-c", command], env=environment(), capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
    [record] = results("o")
    assert record["file"] == "a.png"


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_an_interrupt_at_any_time_is_one_line(share):
    picture("a.png")
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        # Its own account of how far it is, as machines differ in speed.
        code = """if True:
            import sys, paliglass.__main__ as m
            class Told:
                def find_spec(self, name, path=None, target=None):
                    print(name, file=sys.stdout, flush=True)
            sys.meta_path.insert(0, Told())
            sys.argv = ["paliglass", "caption", "a.png", "--max-new-tokens", "2"]
            m.main()
        """
        whole = start("-c", code).communicate()[0].splitlines()
        process = start("-c", code)
        assert process.stdout is not None
        for _ in range(int(share * len(whole))):
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    finally:
        signal.signal(signal.SIGINT, heeded)
    if process.returncode != 0:  # else it was done already
        assert process.returncode == 130
        lines = err.splitlines()
        assert len(lines) == 1, err
        assert lines[0].startswith("error: interrupted")


def test_a_links_loop_gives_each_picture_once(cli):
    picture("d/a.png")
    Path("d/loop").symlink_to(".", target_is_directory=True)
    assert len(cli("caption", "**/*.png", "--json").records()) == 1
    assert len(cli("caption", "d", "-r", "--json").records()) == 1
