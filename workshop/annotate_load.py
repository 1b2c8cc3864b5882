"""What faults, workers and Ray itself do to annotating: `python -m workshop.annotate_load`.

    memory    a run on two workers: no worker's memory may grow by more than 5 % after half of it
    faults    the same, of which a worker is killed by SIGKILL three times and then the driver;
              resumed: each picture must have its row once, as in the run without faults (that of
              `memory --keep FOLDER`, if it is there)
    cost      processor time that a picture takes to open and to answer, and by arithmetic what a
              million take on 1, 8 and 64 workers, and carry through Ray's object store
    scaling   pictures a second with one worker and with two, of one thread each
    ceiling   pictures a second with a model that answers at once: what opening them, the driver and
              Ray's own processes cost, and so where it stops scaling

Each starts Ray on this machine and ends only what it started (Linux: /proc).
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from paliglass.cli.options import MIN_SCORE
from paliglass.scale.annotator import Annotator, Job
from paliglass.scale.opening import Opened
from paliglass.scale.output import PARTS, Output
from paliglass.scale.rows import failed_row, to_table
from paliglass.scale.sources import entries
from workshop.commands import run
from workshop.serving_load import scenes

TASK = "detect red circle ; blue square"
WORKER = "MapWorker(MapBatches(Annotator))"
GROWTH = 0.05
SCORE_ERROR = 1e-3  # bfloat16 rounds otherwise in other company


class Instant:
    """A model that answers at once."""

    def __init__(self, job: Job, threads: int) -> None:
        self.job = job

    def __call__(self, table: pa.Table) -> pa.Table:
        opened = [Opened(**row) for row in table.to_pylist()]
        about = {"task": self.job.task, "prompt": self.job.prompt, "model": "none"}
        rows = [
            failed_row({"id": o.id, "picture": o.picture, **about}, "not asked") for o in opened
        ]
        return to_table(rows)


def make_pictures(folder: Path, count: int) -> None:
    """Shapes in colours, 256 × 256."""
    folder.mkdir(parents=True, exist_ok=True)
    if len(list(folder.iterdir())) == count:  # kept by a run before
        return
    for number, address in enumerate(scenes(count)):
        data = base64.b64decode(address.partition(",")[2])
        (folder / f"{number:06}.png").write_bytes(data)


os.environ.setdefault("RAY_worker_niceness", "0")  # else others on the machine starve them


def start(pictures: Path, out: Path, workers: int, part_size: int, *more: str) -> psutil.Popen:
    command = [sys.executable, "-m", "paliglass", "annotate", str(pictures), "--task", TASK]
    command += ["--out", str(out), "--ray", "local", "--workers", str(workers), "--threads", "1"]
    command += ["--part-size", str(part_size), "--device", "cpu", *more]
    return psutil.Popen(command, stdout=subprocess.DEVNULL)


@cache
def rows_in(part: Path) -> int:
    return int(pq.read_metadata(part).num_rows)


def written(out: Path) -> int:
    """Rows in parts that are whole."""
    count = 0
    for path in (out / PARTS).glob("*.parquet"):
        with suppress(OSError, pa.ArrowException):  # being written
            count += rows_in(path)
    return count


def kind_of(process: psutil.Process, driver: int) -> str:
    """Which of a run's processes one is."""
    if process.pid == driver:
        return "driver"
    name = process.cmdline()[0] if process.cmdline() else ""
    if "MapWorker" in name:
        return "workers" if WORKER in name or "Instant" in name else "filter"
    for part, kind in (("Square", "opening"), ("Write", "writing"), ("ray::", "reading")):
        if part in name:
            return kind
    return "ray"


class Watch:
    """Looks at all processes of a driver every half second, until its block ends.

    memory: MB of each worker, over time, without what it shares with others: of the object store
    it has mapped whatever it has read. cpu: processor seconds by kind; a process of Ray's does now
    this, now that.
    """

    def __init__(self, driver: int) -> None:
        self.driver = psutil.Process(driver)
        self.memory: dict[int, list[float]] = defaultdict(list)
        self.cpu: dict[str, float] = defaultdict(float)
        self._spent: dict[psutil.Process, float] = defaultdict(float)
        self.seen: set[psutil.Process] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._over.wait(0.5):
            for process, kind in self.processes():
                try:
                    times = process.cpu_times()
                    spent = times.user + times.system
                    self.cpu[kind] += spent - self._spent[process]
                    self._spent[process] = spent
                    if kind == "workers":
                        sizes = process.memory_info()
                        self.memory[process.pid].append((sizes.rss - sizes.shared) / 2**20)
                except psutil.Error:
                    continue

    def processes(self) -> Iterator[tuple[psutil.Process, str]]:
        try:
            found = [self.driver, *self.driver.children(recursive=True)]
        except psutil.Error:
            return
        for process in found:
            self.seen.add(process)
            try:
                yield process, kind_of(process, self.driver.pid)
            except psutil.Error:
                continue

    def workers(self) -> list[psutil.Process]:
        return [process for process, kind in self.processes() if kind == "workers"]


def told(watch: Watch, count: int) -> str:
    """What each kind of process spent; start-up too."""
    seconds = sorted(watch.cpu.items())
    return ", ".join(f"{kind} {1000 * spent / count:.1f}" for kind, spent in seconds)


def wait_for_rows(out: Path, count: int, process: psutil.Popen) -> None:
    while written(out) < count:
        if process.poll() is not None:
            raise RuntimeError(f"the run ended with {process.returncode} and {written(out)} rows")
        time.sleep(0.2)


def end_leftovers(watch: Watch) -> None:
    """Ends what a killed driver left running; psutil leaves alone who has got its number since."""
    for process in watch.seen:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def rows_of(out: Path) -> list[dict[str, Any]]:
    files = sorted((out / PARTS).glob("*.parquet"))
    return [row for path in files for row in pq.read_table(path).to_pylist()]


def compare(whole: list[dict[str, Any]], faulted: list[dict[str, Any]]) -> list[str]:
    """What differs between two runs' rows; scores may by what company does to bfloat16."""
    wrong = []
    if len(faulted) != len({row["id"] for row in faulted}):
        wrong.append(f"{len(faulted)} rows have {len({row['id'] for row in faulted})} ids")
    mine, theirs = ({row["id"]: row for row in rows} for rows in (whole, faulted))
    wrong += [f"{id}: is in one run only" for id in mine.keys() ^ theirs.keys()]
    for id in mine.keys() & theirs.keys():
        a, b = mine[id], theirs[id]
        said = [[(o["label"], o["box"]) for o in row["objects"] or ()] for row in (a, b)]
        scores = [[o["score"] for o in row["objects"] or ()] for row in (a, b)]
        near = all(abs(x - y) <= SCORE_ERROR for x, y in zip(*scores, strict=False))
        if said[0] != said[1] or a["error"] != b["error"] or not near:
            wrong.append(f"{id}: {said[0]} {scores[0]}, not {said[1]} {scores[1]}")
    return wrong


@contextmanager
def pictures_in(folder: Path | None, count: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) if folder is None else folder
        make_pictures(place / "pictures", count)
        yield place


def memory(place: Path, count: int, part_size: int) -> bool:
    begin = time.perf_counter()
    process = start(place / "pictures", place / "whole", 2, part_size)
    with Watch(process.pid) as watch:
        process.wait()
    print(f"without faults: {count} pictures in {time.perf_counter() - begin:.0f} s", flush=True)
    growth = 0.0
    for sizes in watch.memory.values():
        growth = max(growth, sizes[-1] / sizes[len(sizes) // 2] - 1)
        shown = [sizes[len(sizes) * i // 10] for i in range(10)] + [sizes[-1]]
        print("a worker's memory, MB:", *(f"{size:.0f}" for size in shown))
    print(f"growth in the second half: {growth:+.1%} at most")
    print(f"processor ms a picture: {told(watch, count)}", flush=True)
    return growth <= GROWTH and written(place / "whole") == count


def faults(place: Path, count: int, part_size: int) -> bool:
    pictures, whole, faulted = (place / name for name in ("pictures", "whole", "faulted"))
    if written(whole) != count and not memory(place, count, part_size):
        return False
    process = start(pictures, faulted, 2, part_size)
    with Watch(process.pid) as watch:
        for share in (0.1, 0.2, 0.3):
            wait_for_rows(faulted, int(share * count), process)
            victim = watch.workers()[0]
            victim.kill()
            print(f"worker {victim.pid} killed with {written(faulted)} rows written", flush=True)
        wait_for_rows(faulted, count // 2, process)
        process.kill()
        process.wait()
        print(f"driver killed with {written(faulted)} rows written", flush=True)
    begin = time.perf_counter()
    process = start(pictures, faulted, 2, part_size, "--resume")
    code = process.wait()
    print(f"resumed: exit code {code} after {time.perf_counter() - begin:.0f} s", flush=True)
    end_leftovers(watch)
    rows = rows_of(faulted)
    wrong = compare(rows_of(whole), rows)
    errors = sum(row["error"] is not None for row in rows)
    found = sum(bool(row["objects"]) for row in rows)
    equal = sum(a == b for a, b in zip(*map(sorted_rows, (rows_of(whole), rows)), strict=False))
    print(f"{len(rows)} rows, {len({row['id'] for row in rows})} ids, {errors} errors,")
    print(f"something found in {found}; {len(wrong)} differ from the run without faults,")
    print(f"{equal} equal it to the last bit")
    for line in wrong[:10]:
        print(" ", line)
    return not wrong and len(rows) == count and code == 0


def sorted_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: str(row["id"]))


def rate(out: Path) -> tuple[int, float]:
    """(rows, seconds) between the first part that was written and the last."""
    parts = sorted((p.stat().st_mtime, p) for p in (out / PARTS).glob("*.parquet"))
    rows = sum(pq.read_metadata(path).num_rows for _, path in parts[1:])
    return rows, parts[-1][0] - parts[0][0]


def cost(place: Path, count: int, part_size: int) -> bool:
    annotator = Annotator(Job(TASK, loading={"device": "cpu"}, min_score=MIN_SCORE), threads=1)
    square = annotator.job.square()
    found = list(entries([str(place / "pictures")]))
    list(annotator.annotate(map(square.open, found[:8])))  # warm
    begin = time.process_time()
    opened = [square.open(entry) for entry in found]
    middle = time.process_time()
    rows = list(annotator.annotate(opened))
    opening, answering = (1000 * t / count for t in (middle - begin, time.process_time() - middle))
    stored = 3 * square.side**2
    print(f"processor ms a picture: {opening:.1f} to open, {answering:.1f} to answer; tokens:")
    print(f"{sum(row['num_tokens'] or 0 for row in rows) / count:.1f}; found in", end=" ")
    print(f"{sum(bool(row['objects']) for row in rows)} of {count}")
    print("| workers | a million pictures | cores that open | through the object store |")
    print("|---:|---:|---:|---:|")
    for workers in (1, 8, 64):
        hours = answering / 1000 * 1e6 / workers / 3600
        rate = workers * 1000 / answering
        store = rate * stored / 1e6
        print(f"| {workers} | {hours:.2f} h | {rate * opening / 1000:.1f} | {store:.0f} MB/s |")
    return True


def scaling(place: Path, count: int, part_size: int) -> bool:
    print(f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    rates = []
    for workers in (1, 2):
        out = place / f"scaling-{workers}"
        process = start(place / "pictures", out, workers, part_size)
        with Watch(process.pid) as watch:
            process.wait()
        rows, seconds = rate(out)
        rates.append(rows / seconds)
        print(f"{workers} worker(s): {rates[-1]:.1f} pictures/s")
        print(f"processor ms a picture: {told(watch, count)}")
    print(f"two against one: {rates[1] / rates[0]:.2f} ×", flush=True)
    return True


def ceiling(place: Path, count: int, part_size: int) -> bool:
    from paliglass.scale import pipeline

    out = place / "ceiling"
    with Output(str(out), {"workshop": "ceiling"}, resume=False) as output:
        output.manifest(entries([str(place / "pictures")]))
        with pipeline.connected("local", 1, 1), Watch(os.getpid()) as watch:
            before = sum(os.times()[:2])
            begin = time.perf_counter()
            pipeline.annotate(output, Job(TASK), 1, 1, part_size, annotator=Instant)
            wall = time.perf_counter() - begin
            driver = sum(os.times()[:2]) - before
        stored = sum(p.stat().st_size for p in (out / PARTS).glob("*.parquet"))
    rows, seconds = rate(out)
    cpu = watch.cpu | {"driver": driver}
    print(f"a model that answers at once: {rows / seconds:.0f} pictures/s between first and last")
    print(f"part ({wall:.1f} s in all for {count}); processor ms a picture:")
    for kind, spent in sorted(cpu.items()):
        print(f"  {kind}: {1000 * spent / count:.2f}")
    print(f"bytes of Parquet a picture: {stored / count:.0f}", flush=True)
    return True


def annotate_load(
    what: Annotated[
        Literal["memory", "faults", "cost", "scaling", "ceiling"],
        typer.Argument(
            help="memory: over a run; faults: kills; cost: arithmetic; scaling: workers; "
            "ceiling: Ray's share."
        ),
    ],
    pictures: Annotated[int, typer.Option(min=100, help="How many are made and asked about.")] = (
        2000
    ),
    part_size: Annotated[int, typer.Option(min=1, help="Pictures of a part.")] = 25,
    keep: Annotated[
        Path | None, typer.Option(help="Folder for pictures and runs, which stays.")
    ] = None,
) -> None:
    """Kill workers and driver of a run, measure its memory, its scaling and Ray's share."""
    with pictures_in(keep, pictures) as place:
        done = {
            "memory": memory,
            "faults": faults,
            "cost": cost,
            "scaling": scaling,
            "ceiling": ceiling,
        }[what]
        if not done(place, pictures, part_size):
            raise typer.Exit(1)


if __name__ == "__main__":
    run(annotate_load)
