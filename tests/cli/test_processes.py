"""What only a process of its own shows: signals, pipes, what is imported, the scripts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cli.helpers import picture, results

import paliglass

ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """This process's, with the package under test and one thread."""
    return {
        **os.environ,
        "PYTHONPATH": str(Path(paliglass.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }


def start(*arguments: object, **options) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        **options,
    )


def test_help_and_version_do_not_import_torch():
    code = """if True:
        import sys
        from paliglass.cli import main
        for arguments in (["--help"], ["caption", "--help"], ["--version"], ["caption"]):
            try:
                main(arguments)
            except SystemExit:
                pass
        heavy = {"torch", "numpy", "PIL", "tokenizers", "safetensors", "transformers"}
        print(heavy & set(sys.modules), file=sys.stderr)
    """
    out, err = start("-c", code).communicate()
    assert err.splitlines()[-1] == "set()"
    assert paliglass.__version__ in out


def test_a_cold_start_waits_for_no_compiler(model_folder):
    picture("a.png")
    code = """if True:
        import sys
        from paliglass.cli import main
        try:
            main(["caption", "a.png", "--max-new-tokens", "2", "--quiet"])
        finally:
            heavy = {"torch._dynamo", "sympy", "transformers", "huggingface_hub"}
            print(heavy & set(sys.modules), file=sys.stderr)
    """
    _, err = start("-c", code).communicate()
    assert err == "set()\n"


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_control_c_keeps_what_was_done(cli):
    for i in range(60):
        picture(f"d/{i:02}.png")
    arguments = ["caption", "d", "--out", "o", "--batch-size", "1"]
    # What a shell starts in the background ignores the signal, and so would its children.
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start("-m", "paliglass", *arguments, "--max-new-tokens", 100)
    signal.signal(signal.SIGINT, heeded)
    lines = Path("o/results.jsonl")
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (lines.exists() and lines.stat().st_size):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert err.startswith("error: interrupted; ")
    assert len(err.splitlines()) == 1
    done = results("o")
    assert 0 < len(done) < 60
    assert cli(*arguments, "--max-new-tokens", 100, "--resume").code == 0
    assert results("o")[: len(done)] == done
    assert [record["file"] for record in results("o")] == [f"d/{i:02}.png" for i in range(60)]


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_ends_well_while_it_loads_its_model(number):
    pytest.importorskip("fastapi")
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)
    code = """if True:
        import atexit, time
        import paliglass.serving.options as options
        # Python's own end, under a thread that torch works in, may abort.
        atexit.register(lambda: print("Python's own end", flush=True))
        loaded = options.load
        options.load = lambda *given, **how: time.sleep(1000) or loaded(*given, **how)
        import uvicorn
        begun = uvicorn.Server.startup
        async def startup(self, sockets=None):
            await begun(self, sockets)
            print("begun", flush=True)
        uvicorn.Server.startup = startup
        from paliglass.cli import main
        main(["serve", "--port", "0"])
    """
    process = start("-c", code)
    signal.signal(signal.SIGINT, heeded)
    assert process.stdout is not None
    while process.stdout.readline() != "begun\n":
        assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_a_killed_run_loses_and_doubles_nothing(cli):
    for i in range(24):
        picture(f"d/{i:02}.png", size=(400 - 16 * i, 20 + 16 * i))
    arguments = ["caption", "d", "--batch-size", "2", "--max-new-tokens", 100]
    process = start("-m", "paliglass", *arguments, "--out", "o")
    lines = Path("o/results.jsonl")
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (lines.exists() and lines.stat().st_size):
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert 0 < lines.read_bytes().count(b"\n") < 24
    assert cli(*arguments, "--out", "o", "--resume").code == 0
    assert cli(*arguments, "--out", "whole").code == 0
    assert [record["file"] for record in results("o")] == [f"d/{i:02}.png" for i in range(24)]
    assert results("o") == results("whole")


@pytest.mark.skipif(os.name != "posix", reason="pipes break differently elsewhere")
def test_a_reader_that_leaves_is_no_news():
    for i in range(8):
        picture(f"d/{i}.png")
    process = start("-m", "paliglass", "caption", "d", "--batch-size", 1, "--max-new-tokens", 4)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("d/0.png\t")
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(300) == 0


def inference(*arguments: object) -> tuple[int, str, str]:
    process = start(ROOT / "inference.py", *arguments)
    out, err = process.communicate()
    return process.returncode, out, err


def test_inference_takes_the_original_flags(model_folder):
    picture("a.png")
    answer = paliglass.load(model_folder).generate("a.png", "caption en", max_new_tokens=5)
    flags = ["--model_path", model_folder, "--image_file_path", "a.png", "--prompt", "caption en"]
    flags += ["--max_tokens_to_generate", 5, "--temperature", 0.8, "--top_p", 0.9]
    code, out, _ = inference(*flags, "--do_sample", "False", "--only_cpu", "False")
    assert (code, out) == (0, f"caption en {answer}\n")


def test_inference_says_what_is_wrong_in_a_line(model_folder):
    code, out, err = inference("--model_path", model_folder, "--image_file_path", "gone.png")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == "error: gone.png: no such file"
    assert "Traceback" not in err


def test_inference_flags_are_read_as_words(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from inference import parse

    for words, value in ((["True"], True), (["false"], False), (["0"], False), ([], True)):
        flags = parse(["--do_sample", *words, "--only_cpu", *words])
        assert (flags.do_sample, flags.only_cpu) == (value, value)
    assert not parse([]).do_sample
    with pytest.raises(SystemExit) as ending:
        parse(["--do_sample", "maybe"])
    assert ending.value.code == 2


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_the_launcher_hands_its_variables_on(model_folder):
    picture("a picture.png")
    answer = paliglass.load(model_folder).generate("a picture.png", "ocr", max_new_tokens=4)
    # Copies, beside a .venv of their own: the checkout's may have another package.
    for name in ("inference.py", "launch_inference.sh"):
        Path(name).write_bytes((ROOT / name).read_bytes())
    python = Path(".venv/bin/python")
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    settings = {
        "MODEL_PATH": str(model_folder),
        "PROMPT": "ocr",
        "IMAGE_FILE_PATH": "a picture.png",
        "MAX_TOKENS_TO_GENERATE": "4",
    }
    done = subprocess.run(
        ["bash", "launch_inference.sh"],
        env={**environment(), **settings},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, f"ocr {answer}\n")
