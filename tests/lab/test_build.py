"""The lab's one file: modules joined, weights packed, nothing fetched, errors of one line."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import webbrowser
import zlib
from html import escape
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file
from tests.lab.helpers import MINI, NODE, needs_node

from paliglass.cli import main
from paliglass.errors import CheckpointError
from paliglass.inspect.lessons import Lesson, lessons
from paliglass.lab.build import ENGINE, PAGE, Part, _html, build, join_modules, pack

DUAL = MINI.parent / "mini_dual"


def test_joined_modules_are_one_script(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text(
        'import { two as deux } from "./in/b.js";\nexport const four = deux * 2;\n'
    )
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.js").write_text(
        'import * as c from "../c.js";\nexport const two = c.one() + 1;\n'
    )
    (tmp_path / "c.js").write_text(
        "const hidden = 1;\nexport function one() {\n  return hidden;\n}\n"
    )
    (tmp_path / "main.js").write_text(
        'import { four } from "./a.js";\nimport { one } from "./c.js";\nconsole.log(four, one());\n'
    )
    joined = join_modules(tmp_path / "main.js")
    assert not re.search(r"^\s*(import|export) ", joined, re.MULTILINE)
    assert joined.count("const hidden") == 1  # a module that two need is there once
    if NODE is not None:
        done = subprocess.run([NODE, "-e", joined], capture_output=True, text=True, check=True)
        assert done.stdout == "4 1\n"


def test_modules_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text('import { b } from "./b.js";\nexport const a = 1;\n')
    (tmp_path / "b.js").write_text('import { a } from "./a.js";\nexport const b = 1;\n')
    with pytest.raises(ValueError, match="imports itself"):
        join_modules(tmp_path / "a.js")


@needs_node
@pytest.mark.parametrize("entry", [ENGINE / "worker.js", PAGE / "app.js"], ids=lambda p: p.stem)
def test_the_labs_own_modules_join_to_valid_scripts(entry: Path, tmp_path: Path) -> None:
    (tmp_path / "joined.js").write_text(join_modules(entry), encoding="utf-8")
    assert NODE is not None
    subprocess.run([NODE, "--check", str(tmp_path / "joined.js")], check=True)


def test_types_hold() -> None:
    tsc = shutil.which("tsc")
    if tsc is None:
        pytest.skip("tsc, which checks the types in the comments, is not installed")
    config = Path(__file__).parent / "jsconfig.json"
    done = subprocess.run([tsc, "-p", str(config)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def unpacked(part: Part, folder: Path, text: str | None = None) -> list[bytes]:
    """A part's sections, as the page's worker unpacks them."""
    given = {"text": text or part.letters, "planes": part.planes, "sizes": part.sizes}
    (folder / "packed.json").write_text(json.dumps(given))
    script = f"""
        import {{ readFileSync, writeFileSync }} from "node:fs";
        import {{ sections }} from {json.dumps((ENGINE / "unpack.js").as_uri())};
        let i = 0;
        for await (const section of sections(JSON.parse(readFileSync("packed.json", "utf8"))))
          writeFileSync(`section${{i++}}`, new Uint8Array(section));
    """
    (folder / "unpack.mjs").write_text(script)
    assert NODE is not None
    subprocess.run([NODE, "unpack.mjs"], cwd=folder, check=True, capture_output=True, text=True)
    return [(folder / f"section{i}").read_bytes() for i in range(len(part.sizes))]


@needs_node
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_what_is_packed_comes_out_again(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    numbers = torch.tensor([0.0, -0.0, 1.5, -3e-8, float("inf"), float("nan")])
    save_file({"w": torch.randn(60, 40).to(dtype), "b": numbers.to(dtype)}, path)
    part = pack("x", path)
    assert part.planes == (1 if dtype is torch.float32 else 2)
    assert "<" not in part.letters  # nothing that could end the element it stands in
    assert unpacked(part, tmp_path) == [path.read_bytes()]


@needs_node
def test_what_is_needed_first_is_a_section_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    names = ["a.one", "b.one", "a.two", "b.two"]
    tensors = {name: torch.randn(3, 4).to(torch.bfloat16) for name in names}
    save_file(tensors, path)
    found = [load(section) for section in unpacked(pack("x", path, ("b.",)), tmp_path)]
    assert [sorted(one) for one in found] == [["b.one", "b.two"], ["a.one", "a.two"]]
    for name, tensor in (found[0] | found[1]).items():
        assert torch.equal(tensor, tensors[name])


@needs_node
def test_what_is_cut_off_or_changed_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(list(range(3000))))
    part = pack("x", path)
    changed = part.letters[:-8] + "00000000"  # where gzip's checksum stands
    for text in (part.letters[: len(part.letters) // 2], changed):
        with pytest.raises(subprocess.CalledProcessError):
            unpacked(part, tmp_path, text)


def test_the_page_is_whole_and_fetches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "lab.html"
    with pytest.raises(SystemExit) as done:
        main(["lab", "--out", str(out)])
    assert done.value.code == 0
    page = out.read_text(encoding="utf-8")
    assert out.stat().st_size <= 16_000_000
    assert f"{len(page) / 1e6:.1f} MB" in capsys.readouterr().out
    plain = re.sub(r'<script type="application/gzip".*?</script>', "", page, flags=re.DOTALL)
    addresses = set(re.findall(r"https?://[^\s\"'`)<>]+", plain))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(
        r"<(?:link|script|img)[^>]+(?:src|href)=[\"'](?!data:)", plain.split("<script", 1)[0]
    )
    for ident in ("config", "tokenizer", "weights", "codec", "kernel", "dual-weights"):
        assert page.count(f'id="{ident}"') == 1


def test_a_server_is_given_pieces_in_the_order_of_need(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "site"
    with pytest.raises(SystemExit) as done:
        main(["lab", "--out", str(out)])
    assert done.value.code == 0
    assert "weights.bin: " in capsys.readouterr().out
    page = (out / "index.html").read_text(encoding="utf-8")
    sources = re.findall(r'data-source="(.*?)[?](.*?)"', page)
    assert [name for name, _ in sources][:3] == ["stickers.bin", "weights.bin", "codec.bin"]
    assert {name for name, _ in sources} | {"index.html"} == {one.name for one in out.iterdir()}
    for name, checksum in sources:
        assert int(checksum, 16) == zlib.crc32((out / name).read_bytes())
    # What a reader waits for before the first word.
    first = [(out / name).read_bytes() for name in ("stickers.bin", "weights.bin")]
    assert sum(map(len, [*first, zlib.compress(page.encode(), 6)])) <= 6_700_000
    for again in (["lab", "--out", str(out)], ["lab", "--out", str(out / "index.html")]):
        with pytest.raises(SystemExit) as done:
            main(again)
        assert done.value.code == 1
        assert "index.html: exists already" in capsys.readouterr().err
    (out / "index.html").unlink()
    (out / "weights.bin").write_text("somebody's own")
    with pytest.raises(SystemExit) as done:
        main(["lab", "--out", str(out)])
    assert done.value.code == 1
    assert (out / "weights.bin").read_text() == "somebody's own"


def test_lessons_are_whole_in_the_page() -> None:
    every = {one.topic: one for one in lessons()}
    page = build(None, None)
    titles = re.search(r'id="lesson-titles">(.*?)</script>', page)
    packed = re.search(r'id="lessons"[^>]*>(.*?)</script>', page)
    assert titles
    assert packed
    assert json.loads(titles[1]).keys() == every.keys()
    texts = json.loads(zlib.decompress(base64.b85decode(packed[1].replace(",", "<")), 31))
    for topic, html in texts.items():
        assert f"<h1>{every[topic].number:02} · " in html
        assert html.count("<img ") == html.count('src="data:image/svg+xml,') > 0
        assert set(re.findall(r'href="#lesson=(\w+)"', html)) <= every.keys()
        addresses = re.findall(r'href="(?!#lesson=)(.*?)"', html)
        assert all(address.startswith("https://") for address in addresses)
        assert not re.search(r"<(?:script|style|iframe)|(?:<|&lt;)!--", html)
        assert "<details><summary>Answers</summary>" in html
        folds = html.count("<details><summary>")
        assert folds == html.count("</details>") == every[topic].text.count("<details>") > 0


def test_a_lessons_code_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "01_x.md"
    code = "<details><summary>in code</summary><!-- kept --></details>"
    text = f"""# 01 · X

<!-- gone -->

```html
{code}
```

a <b>tag</b>, `<summary>`

<details><summary>Answers</summary>

1. *one*

</details>
"""
    path.write_text(text, encoding="utf-8")
    html = _html(Lesson(path, 1, "x"))
    assert escape(code) in html
    assert "gone" not in html
    assert "<p>a &lt;b&gt;tag&lt;/b&gt;, <code>&lt;summary&gt;</code></p>" in html
    assert re.search(
        r"<details><summary>Answers</summary>\s<ol>\s<li><em>one</em></li>\s</ol>\s</details>", html
    )


def test_it_opens_the_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[str] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) is None)
    with pytest.raises(SystemExit) as done:
        main(["lab"])
    assert done.value.code == 0
    assert [Path(url.removeprefix("file://")).exists() for url in opened] == [True]


@pytest.mark.parametrize("option", [["--torch"], ["--quantize", "int8"]])
def test_what_torch_computes_is_no_file(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        main(["lab", *option, "--out", str(tmp_path / "lab.html")])
    assert done.value.code == 2
    assert f"{option[0]} needs the server" in capsys.readouterr().err


def test_a_model_without_a_file_of_weights_is_named(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(MINI / name, tmp_path / name)
    with pytest.raises(CheckpointError, match="no such file; the lab wants weights in one file"):
        build(tmp_path, None)


def test_a_page_can_do_without_the_dual_encoder() -> None:
    page = build(MINI, None)
    assert 'id="weights"' in page
    assert 'id="dual-weights"' not in page


def test_the_stickers_say_whose_they_are() -> None:
    data = json.loads((PAGE / "stickers.json").read_text(encoding="utf-8"))
    assert "Noto Emoji, © Google, Apache-2.0" in data["source"]
    assert len(data["stickers"]) >= 40
    attribution = (Path(__file__).parents[2] / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "lab/page/stickers.json" in attribution
