"""Simple documents with exact answers: receipts, menus, invoices, tickets, forms, bar charts.

A page is drawn line by line; what is asked about it comes from the same facts that were written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from workshop.world.art import Face
from workshop.world.concepts import CHARACTERS, COLOURS
from workshop.world.words import INVENTED, invented_word, is_held_out

__all__ = ["ITEMS", "SERIES", "Document", "Page", "draw_page"]

SHOPS = """Corner Cafe|Green Market|City Books|Blue Bakery|Sun Shop|Star Food|Farm Store|Tea House|
Pizza Roma|Burger Bar|Toy World|Fish & Co|Fresh Mart|Old Mill|Red Lion|Golden Cup|Quick Stop|Mini
Market|Park Kiosk|Happy Deli|North Grill|Lake Inn|Moon Bar|Rose Garden|Apple Hut|Super Save|Bread
Box|Daily Shop|Ocean Bar|Hill Top""".replace("\n", " ").split("|")
ITEMS = """milk bread eggs butter cheese apples bananas tea coffee juice water rice pasta soup cake
cookies honey sugar salt tomatoes onions carrots salad pizza burger chips beer wine chocolate fish
meat ham soap pens paper book toy lamp candles flowers""".split()
NAMES = """Anna Ben Carla David Emma Frank Grace Henry Ida Jack Kate Leo Maria Nick Olga Paul Rosa
Sam Tina Victor Wendy Max Lily Tom Sara Peter Julia Mark Nora Adam""".split()
FAMILIES = """Bell Cook Fox Green Hill King Lake Moore Price Reed Stone Wood Young Baker Carter Diaz
Klein Lopez Meyer Novak Rossi Silva Weber Brown Park""".split()
CITIES = """London Paris Rome Berlin Madrid Vienna Oslo Dublin Prague Lisbon Athens Warsaw Zurich
Milan Lyon Bonn Porto Nice Turin Bern York Leeds Bath Kiel Graz Basel Ghent Turku""".split()
MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
SERIES = (
    "apples pears plums grapes lemons kiwis".split(),
    "cats dogs birds fish mice horses".split(),
    MONTHS,
    "Mon Tue Wed Thu Fri Sat Sun".split(),
    "red blue green pink grey brown".split(),
    list("ABCDEF"),
    "2019 2020 2021 2022 2023 2024".split(),
    "Anna Ben Tom Lily Max Sara".split(),
    "Rome Paris Oslo York Bern Nice".split(),
)
TITLES = "Sales Visitors Votes Points Fruit Pets Rain Books Goals Stars Tickets Hours".split()


_SMALLEST = 10.5 / 128  # of a page's side: type below this is not to be read
_SMALLEST_LABEL = 9 / 128  # of a chart's, which stand apart


@dataclass(frozen=True)
class Document:
    """What is on a page.

    kind: "receipt", "menu", "invoice", "ticket", "form" or "bar chart";
    lines: all of its text, from top to bottom;
    facts: what can be asked for by a name, with the answer;
    values: the things on it that have a number each, in order.
    """

    kind: str
    lines: tuple[str, ...]
    facts: dict[str, str]
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """A document drawn: h × w × 3, and for each pixel 1 + the character's number, or 0.

    smallest: the size of its smallest type, in pixels.
    """

    document: Document
    picture: NDArray[np.uint8]
    characters: NDArray[np.uint8]
    smallest: int


class _Sheet:
    """Paper that text and bars are put on; sizes are in pixels."""

    def __init__(self, rng: np.random.Generator, face: Face, width: int, height: int) -> None:
        self.rng, self.face, self.width, self.height = rng, face, width, height
        paper = rng.integers(228, 256, 3) if rng.random() < 0.7 else np.full(3, 255)
        ink = rng.integers(0, 70, 3) if rng.random() < 0.5 else np.zeros(3, int)
        self.paper, self.ink = tuple(map(int, paper)), tuple(map(int, ink))
        self.picture = Image.new("RGB", (width, height), self.paper)
        self.characters = np.zeros((height, width), np.uint8)
        self.onto = ImageDraw.Draw(self.picture)
        self.smallest = height

    def size_for(self, texts: Sequence[str], height: float, width: float | None = None) -> int:
        """The font size at which lines are so high at most and none is wider than the sheet."""
        width = self.width - 8 if width is None else width
        size = max(5, int(height))
        while size > 5 and max(self.face.edges(text, size)[-1] for text in texts) > width:
            size -= 1
        return size

    def text(self, x: float, y: float, text: str, size: int, anchor: str = "la") -> None:
        """Text from its left ("l"), middle or right edge, and from its top."""
        self.smallest = min(self.smallest, size)
        edges = self.face.edges(text, size)
        left = round(x - {"l": 0.0, "m": edges[-1] / 2, "r": edges[-1]}[anchor[0]])
        top = round(y)
        self.onto.text((left, top), text, self.ink, self.face.at(size))
        rows = slice(max(0, top + size // 6), top + size)
        for character, a, b in zip(text, edges, edges[1:], strict=False):
            if character != " ":
                columns = slice(max(0, left + round(a)), max(0, left + round(b)))
                self.characters[rows, columns] = 1 + CHARACTERS.index(character)

    def rule(self, y: float) -> None:
        """A line from side to side."""
        self.onto.line((3, round(y), self.width - 4, round(y)), self.ink)


def draw_page(rng: np.random.Generator, face: Face, size: int, held_out: bool) -> Page:
    """A page that fits into a square of `size` pixels, its type not too small to be read there."""
    kinds: tuple[Callable[..., Page], ...] = (
        *(_receipt, _receipt, _menu, _invoice),
        *(_ticket, _ticket, _form, _form, _chart, _chart),
    )
    while True:
        page = kinds[rng.integers(len(kinds))](rng, face, size, held_out)
        is_chart = page.document.kind == "bar chart"
        if page.smallest >= (_SMALLEST_LABEL if is_chart else _SMALLEST) * size:
            return page


def _any(rng: np.random.Generator, words: Sequence[str], held_out: bool | None = None) -> str:
    """One of the names, of a split if that is said; training has invented ones, too."""
    if held_out is False and rng.random() < INVENTED:
        parts = 2 if " " in words[0] else 1
        return " ".join(invented_word(rng).capitalize() for _ in range(parts))
    if held_out is not None:
        words = [word for word in words if is_held_out(word) == held_out] or list(words)
    return words[int(rng.integers(len(words)))]


def _date(rng: np.random.Generator) -> str:
    day, month, year = (int(v) for v in rng.integers((1, 1, 2015), (29, 13, 2031)))
    name = MONTHS[month - 1]
    forms = (
        f"{day:02d}.{month:02d}.{year}",
        f"{day:02d}/{month:02d}/{year % 100:02d}",
        f"{day} {name} {year}",
        f"{year}-{month:02d}-{day:02d}",
        f"{day:02d}/{month:02d}/{year}",
        f"{name} {day}, {year}",
        f"{day} {name}",
    )
    return forms[rng.integers(len(forms))]


def _cased(rng: np.random.Generator, text: str) -> str:
    return text.upper() if rng.random() < 0.5 else text


def _menu(rng: np.random.Generator, face: Face, size: int, held_out: bool) -> Page:
    return _receipt(rng, face, size, held_out, "menu")


def _receipt(
    rng: np.random.Generator, face: Face, size: int, held_out: bool, kind: str = "receipt"
) -> Page:
    """A list of prices, with their sum unless it is a menu."""
    shop = _any(rng, SHOPS, held_out)
    date = _date(rng) if kind == "receipt" and rng.random() < 0.7 else ""
    count = int(rng.integers(2, 5))
    items = [ITEMS[i] for i in rng.choice(len(ITEMS), count, replace=False)]
    cents = [int(c) for c in rng.integers(30, 1500, count)]
    if rng.random() < 0.5:
        cents = [c // 10 * 10 for c in cents]
    sign = "" if rng.random() < 0.5 else "$£€"[rng.integers(3)]
    digits = 2
    if rng.random() < 0.15:  # round sums
        cents, digits = [100 * int(c) for c in rng.integers(1, 60, count)], 0
    after = sign and rng.random() < 0.15
    shown_as = "{1:.{2}f} {0}" if after else "{0}{1:.{2}f}"
    prices = [shown_as.format(sign, c / 100, digits) for c in cents]
    total = shown_as.format(sign, sum(cents) / 100, digits)
    shown = _cased(rng, shop)
    word = ("TOTAL", "Total", "Sum")[int(np.searchsorted((0.45, 0.9), rng.random()))]
    width = round(size * rng.uniform(0.72, 0.96))
    pairs = list(zip(items, prices, strict=True))
    if kind == "receipt":
        pairs.append((word, total))
    if kind == "menu" and rng.random() < 0.5:
        shown = ("MENU", "Menu")[rng.integers(2)]
    rows = len(pairs) + 1 + bool(date)
    pitch = size * 0.92 / (rows + 0.6)
    height = round(pitch * (rows + 0.5))
    sheet = _Sheet(rng, face, width, height)
    texts = [f"{a}  {b}" for a, b in pairs]
    font = sheet.size_for([*texts, shown, date], pitch * 0.82)
    lines = [shown]
    y = pitch * 0.2
    sheet.text(width / 2, y, shown, sheet.size_for([shown], font * 1.15), "ma")
    y += pitch
    if date:
        sheet.text(width / 2, y, date, font, "ma")
        lines.append(date)
        y += pitch
    for i, (a, b) in enumerate(pairs):
        if i == count:
            sheet.rule(y + 0.04 * pitch)
        sheet.text(3, y, a, font)
        sheet.text(width - 4, y, b, font, "ra")
        lines.append(f"{a} {b}")
        y += pitch
    facts = {} if shown.upper() == "MENU" else {"shop": shown}
    if kind == "receipt":
        facts["total"] = total
    if date:
        facts["date"] = date
    facts |= {f"price of {a}": b for a, b in zip(items, prices, strict=True)}
    values = dict(zip(items, (float(c) for c in cents), strict=True))
    return _page(sheet, Document(kind, tuple(lines), facts, values))


def _fields(
    rng: np.random.Generator,
    face: Face,
    size: int,
    title: str,
    rows: Sequence[tuple[str, str]],
    kind: str,
    high: bool,
    facts: dict[str, str],
) -> Page:
    """A title and lines of a name and a value each."""
    width = round(size * rng.uniform(0.8, 0.96))
    pitch = size * (0.92 if high else 0.8) / (len(rows) + 1.4)
    sheet = _Sheet(rng, face, width, round(pitch * (len(rows) + 1.3)))
    mark = ":" if rng.random() < 0.7 else ""
    texts = [f"{a}{mark} {b}" for a, b in rows]
    font = sheet.size_for([*texts, title], pitch * 0.8)
    sheet.text(width / 2, pitch * 0.15, title, sheet.size_for([title], font * 1.2), "ma")
    if rng.random() < 0.5:
        sheet.onto.rectangle((0, 0, width - 1, sheet.height - 1), outline=sheet.ink)
    else:
        sheet.rule(pitch * 1.12)
    column = max(face.edges(f"{a}{mark} ", font)[-1] for a, _ in rows) + 4
    aligned = rng.random() < 0.5
    if aligned and column + max(face.edges(b, font)[-1] for _, b in rows) > width - 4:
        aligned = False
    y = pitch * 1.25
    for a, b in rows:
        sheet.text(4, y, f"{a}{mark}", font)
        x = column if aligned else 4 + face.edges(f"{a}{mark} ", font)[-1]
        sheet.text(x, y, b, font)
        y += pitch
    return _page(sheet, Document(kind, (title, *texts), facts))


def _ticket(rng: np.random.Generator, face: Face, size: int, held_out: bool) -> Page:
    date, time = _date(rng), f"{rng.integers(6, 24):02d}:{rng.integers(12) * 5:02d}"
    seat = f"{rng.integers(1, 40)}{'ABCDEF'[rng.integers(6)]}"
    price = f"{'$£€'[rng.integers(3)]}{rng.integers(5, 120)}.{rng.choice(['00', '50', '90'])}"
    facts = {"date": date, "time": time, "seat": seat, "price": price}
    if rng.random() < 0.6:
        start, end = _any(rng, CITIES, held_out), _any(rng, CITIES)
        while start == end:
            end = _any(rng, CITIES)
        title = _any(rng, ("TRAIN TICKET", "BUS TICKET", "BOARDING PASS", "TICKET"))
        rows = [("From", start), ("To", end)]
        facts |= {"start": start, "destination": end}
    else:
        title = _any(rng, ("CINEMA", "CONCERT", "MUSEUM", "CIRCUS", "THEATRE"))
        rows = []
        facts["place"] = title
    more = [("Date", date), ("Time", time), ("Seat", seat), ("Price", price)]
    keep = sorted(rng.choice(4, int(rng.integers(2, 4)), replace=False))
    rows += [more[i] for i in keep]
    for name, _ in (more[i] for i in range(4) if i not in keep):
        del facts[name.lower()]
    if rng.random() < 0.3:
        rows = [(a.upper(), b) for a, b in rows]
    return _fields(rng, face, size, title, rows, "ticket", False, facts)


def _form(rng: np.random.Generator, face: Face, size: int, held_out: bool) -> Page:
    name = f"{_any(rng, NAMES)} {_any(rng, FAMILIES, held_out)}"
    phone = "".join(str(d) for d in rng.integers(0, 10, 6))
    rows = [
        ("Name", name),
        ("Age", str(rng.integers(6, 95))),
        ("City", _any(rng, CITIES)),
        ("Date", _date(rng)),
        ("Phone", f"{phone[:3]} {phone[3:]}"),
        ("Member", ("yes", "no")[rng.integers(2)]),
        ("Number", str(rng.integers(100, 10000))),
    ]
    order = [0, *(1 + rng.permutation(6)[: rng.integers(2, 5)])]
    rows = [rows[i] for i in order]
    title = _any(
        rng, ("FORM", "Registration", "Order form", "Library card", "Visitor", "Club card")
    )
    facts = {a.lower(): b for a, b in rows}
    return _fields(rng, face, size, title, rows, "form", True, facts)


def _invoice(rng: np.random.Generator, face: Face, size: int, held_out: bool) -> Page:
    name, total = _any(rng, FAMILIES, held_out), int(rng.integers(500, 99999))
    amount = f"{'$£€'[rng.integers(3)]}{total / 100:.2f}"
    number = str(rng.integers(100, 10000))
    name = f"{_any(rng, NAMES)} {name}"
    rows = [("No", number), ("Date", _date(rng)), ("To", name), ("Total", amount)]
    facts = {"number": number, "date": rows[1][1], "name": name, "total": amount}
    if rng.random() < 0.3:
        del rows[1], facts["date"]
    title = ("INVOICE", "Invoice", "BILL")[rng.integers(3)]
    return _fields(rng, face, size, title, rows, "invoice", True, facts)


def _chart(rng: np.random.Generator, face: Face, size: int, held_out: bool) -> Page:
    series = SERIES[rng.integers(len(SERIES))]
    count = int(rng.integers(3, 6))
    longest = max(map(len, series))
    count = min(count, 4) if longest > 4 else count
    if series in SERIES[2:4]:
        first = rng.integers(len(series) - count + 1)
        names = list(series[first : first + count])
    else:
        names = [series[i] for i in rng.choice(len(series), count, replace=False)]
    top = int(rng.choice([10, 20, 50, 100]))
    values = rng.choice(np.arange(1, top + 1), count, replace=False)
    while np.diff(np.sort(values)).min() < 0.06 * top:  # differences that can be seen
        values = rng.choice(np.arange(1, top + 1), count, replace=False)
    title = _any(rng, TITLES, held_out) if rng.random() < 0.7 else ""
    width, height = round(size * rng.uniform(0.86, 0.98)), round(size * rng.uniform(0.8, 0.96))
    sheet = _Sheet(rng, face, width, height)
    slot = (width - 10) / count
    small = sheet.size_for(names, size * 0.105, slot - 1)
    numbered = rng.random() < 0.75
    head = round(size * 0.13) if title else 4
    if title:
        sheet.text(width / 2, 2, title, sheet.size_for([title], size * 0.11), "ma")
    base, tall = height - small - 5, height - small - 8 - head - (small + 2 if numbered else 2)
    alike = rng.random() < 0.4
    hues = [name for name in COLOURS if name not in ("white", "black")]
    hue = hues[rng.integers(len(hues))]
    if rng.random() < 0.4:  # an axis, and lines from its ticks
        pale = tuple(round(0.8 * p + 0.2 * i) for p, i in zip(sheet.paper, sheet.ink, strict=True))
        for tick in np.linspace(base - tall, base, int(rng.integers(3, 6)))[:-1]:
            sheet.onto.line((4, round(tick), width - 4, round(tick)), pale)
        sheet.onto.line((4, base - tall - 2, 4, base), sheet.ink)
    colours: dict[str, str] = {}
    for i, (name, value) in enumerate(zip(names, values.tolist(), strict=True)):
        x = 6 + slot * i
        up = base - tall * value / values.max()
        other = hue if alike else hues[(hues.index(hue) + i) % len(hues)]
        own = colours[name] = name if name in COLOURS else other
        box = (round(x + slot * 0.14), round(up), round(x + slot * 0.86), base)
        sheet.onto.rectangle(box, fill=COLOURS[own])
        sheet.text(x + slot / 2, base + 1, name, small, "ma")
        if numbered:
            sheet.text(x + slot / 2, up - small - 2, str(value), small, "ma")
    sheet.onto.line((4, base, width - 4, base), sheet.ink)
    order = np.argsort(values)
    facts = {"highest": names[order[-1]], "lowest": names[order[0]], "bars": str(count)}
    if title:
        facts["title"] = title
    if numbered:
        facts |= {f"value of {n}": str(v) for n, v in zip(names, values.tolist(), strict=True)}
    facts |= {f"colour of {name}": colour for name, colour in colours.items()}
    lines = ([title] if title else []) + ([" ".join(map(str, values.tolist()))] if numbered else [])
    shown = dict(zip(names, map(float, values.tolist()), strict=True))
    return _page(sheet, Document("bar chart", (*lines, " ".join(names)), facts, shown))


def _page(sheet: _Sheet, document: Document) -> Page:
    return Page(document, np.asarray(sheet.picture), sheet.characters, sheet.smallest)
