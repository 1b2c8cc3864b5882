"""The lessons run, print what they show, show the source that runs, and miss nothing."""

from __future__ import annotations

import importlib
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paliglass.errors import PaliglassError
from paliglass.inspect.lessons import Lesson, find, lessons

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "lessons"
LESSONS = lessons()
SECTIONS = ["By hand", "The source", "The same numbers", "Break it", "Exercises", "Papers"]
# ≈ before a number: what a training ended with, which the rounding of another processor moves.
NUMBER = re.compile(r"(≈?)(-?\d+\.\d*(?:e[+-]?\d+)?)")

each = pytest.mark.parametrize("lesson", LESSONS, ids=lambda one: one.topic)


@each
def test_the_code_runs_and_prints_what_is_shown(lesson: Lesson) -> None:
    start = time.process_time()
    printed = None
    for part, output in lesson.run():
        if part.kind == "text":
            assert printed is not None, "a text block follows no code"
            assert "".join(NUMBER.sub(r"\1#", printed).split()) == "".join(
                NUMBER.sub(r"\1#", part.text).split()
            )
            for (about, shown), (_, found) in zip(
                NUMBER.findall(part.text), NUMBER.findall(printed), strict=True
            ):
                rel, abs_ = (0.5, 0.2) if about else (2e-3, 2e-3)
                assert float(found) == pytest.approx(float(shown), rel=rel, abs=abs_)
        if part.kind == "python":
            assert not printed, f"printed and not shown: {printed}"
        printed = output if part.kind == "python" else None if part.kind == "text" else printed
    assert not printed, f"printed and not shown: {printed}"
    assert lesson.num_asserts >= 2
    assert time.process_time() - start < 20  # three seconds on a quick machine


@each
def test_the_page_has_the_lessons_shape(lesson: Lesson) -> None:
    assert re.fullmatch(rf"# {lesson.number:02} · \S.*", lesson.text.partition("\n")[0])
    assert lesson.question.endswith("?")
    sections = re.findall(r"^## (.+)$", lesson.text, re.MULTILINE)
    assert sections == SECTIONS
    assert re.search(r"<details><summary>Answers</summary>\n\n1\. .*</details>", lesson.text, re.S)
    assert re.search(r"\(https://arxiv\.org/abs/\d{4}\.\d{5}\)|\(https://doi\.org/", lesson.text)
    assert "```py\n" in lesson.text, "shows no source"


@each
def test_every_link_leads_somewhere(lesson: Lesson) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", lesson.text)
    assert [target for target in targets if not (FOLDER / target).exists()] == []


@each
def test_the_figure_is_one_that_is_drawn(lesson: Lesson) -> None:
    names = re.findall(r"!\[[^\]]{20,}\]\(figures/(\w+)\.svg\)", lesson.text)
    assert lesson.path.stem in names
    script = (FOLDER / "figures.py").read_text("utf-8")
    assert [name for name in names if f'"{name}":' not in script] == []


@pytest.mark.parametrize(
    "name",
    ["01_architecture", "14_gqa", "15_masks", "23_cost", "27_serving", "28_connectors", "30_after"],
)
def test_figures_of_sizes_and_masks_are_up_to_date(name: str, tmp_path: Path) -> None:
    """Those that no weight is needed for, so that every machine draws the same."""
    figures = runpy.run_path(str(FOLDER / "figures.py"))
    figures["FIGURES"][name].__globals__["FOLDER"] = tmp_path
    figures["FIGURES"][name](name)
    assert (tmp_path / f"{name}.svg").read_text() == (FOLDER / f"figures/{name}.svg").read_text()


@pytest.mark.parametrize(
    "figure", sorted((ROOT / "docs").rglob("*.svg")), ids=lambda path: path.stem
)
def test_a_figure_is_read_on_a_phone(figure: Path) -> None:
    """Its smallest text has 11 pixels where the page leaves it 328 of a phone's 360."""
    drawn = figure.read_text("utf-8")
    width = re.search(r'viewBox="0 0 ([\d.]+) ', drawn)
    sizes = re.findall(r'font(?:-size)?(?:: |=")([\d.]+)', drawn)
    assert width
    assert min(map(float, sizes)) * min(1, 328 / float(width[1])) >= 11


def test_the_source_shown_is_the_packages() -> None:
    """`make docs` writes it anew."""
    pages = [str(one.path) for one in LESSONS]
    command = ["-m", "cogapp", "--check", "-I", str(FOLDER), "-p", "from sources import show"]
    done = subprocess.run(
        [sys.executable, *command, *pages], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_outputs_are_written_beneath_their_code(tmp_path: Path) -> None:
    page = tmp_path / "01_sums.md"
    page.write_text(
        "# 01 · Sums\n\n```python\nx = 1\n```\n\n```text\ngone\n```\n\nThen:\n\n"
        "```python\nprint(x + 1)\n```\n\nEnd.\n"
    )
    with_outputs = runpy.run_path(str(FOLDER / "outputs.py"))["with_outputs"]
    assert with_outputs(Lesson(page, 1, "sums")) == (
        "# 01 · Sums\n\n```python\nx = 1\n```\n\nThen:\n\n"
        "```python\nprint(x + 1)\n```\n\n```text\n2\n```\n\nEnd.\n"
    )


def test_lessons_are_numbered_in_order() -> None:
    assert [one.number for one in LESSONS] == list(range(1, len(LESSONS) + 1))
    assert len({one.topic for one in LESSONS}) == len(LESSONS)


def test_find() -> None:
    assert find("2").topic == find("02").topic == find("patches").topic == "patches"
    assert find("whole architecture").number == 1
    with pytest.raises(PaliglassError, match="no lesson on 'cooking'; choose architecture, "):
        find("cooking")


CONCEPTS = """
    embeddings; positional encoding; multi-head attention; feed forward; logits; softmax; skip
    connection; rotary; multi-query; grouped query; contrastive learning; CLIP; SigLIP; vision
    transformer; language model decoder; KV cache; pre-filling; weight tying; top-p; temperature;
    attention masks; numerical stability of softmax; cross entropy loss; full attention; covariate
    shift; importance weighting; domain adaptation; batch normalization; layer normalization; root
    mean square; image tokens; projector; image resizing; tokenizes; object detection; image
    captioning; visual question answering; reading text; fine-tun; parameter sizes; sampling;
    load_hf_model; inference loop; l2_normalize; learned temperature; ResNet; CBOW; text
    transformer; symmetric loss; dot product; not auto-regressive; parallel; configurations; long
    context; training a tokenizer
"""


def index() -> str:
    return (FOLDER / "README.md").read_text("utf-8")


@pytest.mark.parametrize("concept", [" ".join(c.split()) for c in CONCEPTS.split(";")])
def test_every_concept_has_its_row(concept: str) -> None:
    rows = re.findall(r"^\| (.+?) \| \[", index(), re.MULTILINE)
    assert any(concept.lower() in row.lower() for row in rows)


def test_every_row_names_a_lesson_and_code_that_exist() -> None:
    """An idea that the package has no use for (sinusoidal positions) stands in the lesson only."""
    code = r"(?:\[`(\S+?)`\]\((\S+?)\)|lesson only)"
    row = rf"^\| .+? \| \[.+?\]\((\S+?)\) \| {code} \| [45] \|$"  # the last is its depth
    rows = re.findall(row, index(), re.MULTILINE)
    assert len(rows) == len(re.findall(r"^\| .+? \| \[.+$", index(), re.MULTILINE)) > 40
    for target, name, file in rows:
        page, _, anchor = target.partition("#")
        headings = re.findall(r"^## (.+)$", (FOLDER / page).read_text("utf-8"), re.MULTILINE)
        assert not anchor or anchor in {h.lower().replace(" ", "-") for h in headings}, target
        if not name:
            continue
        path = (FOLDER / file).resolve()
        module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        found = importlib.import_module(module.removesuffix(".__init__"))
        for part in name.split("."):
            found = getattr(found, part)


def test_what_is_named_of_the_lab_is_there() -> None:
    """Views, by their titles and the address that opens them, and every tour by its title."""
    page = ROOT / "src" / "paliglass" / "lab" / "page"
    views = "".join(path.read_text("utf-8") for path in page.glob("views/*.js"))
    tours = re.findall(r'id: "\w+",\s+title: "([^"]+)"', (page / "tours.js").read_text("utf-8"))
    lines = [
        " ".join(found[0].split())
        for one in LESSONS
        if (found := re.search(r"^\*\*In the lab\*\*.*?\.\n\n", one.text, re.M | re.S))
    ]
    named = re.findall(r'view \*([^*]+)\* \(`#\{"view":"(\w+)"\}` behind', " ".join(lines))
    assert len(lines) > 20
    assert len(named) > 15
    for title, name in named:
        assert re.search(rf'id: "{name}",\s+title: "{re.escape(title)}"', views), name
    assert {name for _, name in named} == set(re.findall(r'View = \{\s+id: "(\w+)"', views))
    taken = re.findall(r"\*([^*]+)\*", " ".join(line.partition("under Tours")[2] for line in lines))
    assert set(taken) == set(tours)


def test_the_index_lists_all_lessons() -> None:
    listed = re.findall(r"^\d+\. \[(.+?)\]\((.+?)\)", index(), re.MULTILINE)
    assert listed == [(one.title, one.path.name) for one in LESSONS]
