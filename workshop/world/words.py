"""Text for signs and lines, and the rule that keeps the texts of training and testing apart."""

from __future__ import annotations

from functools import lru_cache
from zlib import crc32

import numpy as np

from workshop.world.concepts import CONCEPTS

__all__ = [
    "INVENTED",
    "WORDS",
    "invented_word",
    "is_held_out",
    "is_word",
    "random_line",
    "random_price",
    "random_text",
]

INVENTED = 0.6  # of the words in training: who has seen some hundreds only guesses one of those

_TEXT = """
STOP OPEN EXIT PUSH PULL SALE FREE TAXI BUS CAFE BANK HOTEL HELP HELLO WOW YES NO ON OFF UP
DOWN LEFT RIGHT START END GO SLOW FAST HOT COLD NEW OLD BIG SMALL RED GREEN BLUE GOLD SILVER
NORTH SOUTH EAST WEST HOME HOUSE ROOM DOOR GATE ROAD STREET PARK LAKE RIVER SEA BEACH ISLAND
HILL ROCK SAND SNOW RAIN SUN MOON STAR SKY CLOUD WIND STORM FIRE WATER ICE TREE LEAF ROSE
GRASS FARM FIELD FOREST GARDEN DOG CAT FISH BIRD HORSE SHEEP GOAT DUCK LION TIGER BEAR WOLF
FOX MOUSE FROG SNAKE APPLE PEAR PLUM GRAPE LEMON BREAD CAKE PIE SOUP RICE MEAT MILK TEA COFFEE
JUICE SUGAR SALT EGG HONEY PIZZA PASTA LUNCH DINNER PLATE CUP FORK KNIFE SPOON TABLE CHAIR BED
LAMP CLOCK WATCH PHONE RADIO MUSIC SONG DANCE GAME BALL TOY BOOK PAGE PAPER PEN PAINT COLOR
LETTER WORD NAME NOTE NEWS STORY MAP CITY TOWN SHOP STORE MARKET MONEY COIN PRICE CASH CARD
GIFT BOX BAG HAT COAT SHIRT SHOE DRESS RING CROWN KING QUEEN PRINCE KNIGHT TOWER BRIDGE SHIP
BOAT PLANE TRAIN CAR BIKE TRUCK METRO WHEEL ENGINE OIL GAS POWER LIGHT DARK NIGHT DAY WEEK
MONTH YEAR SPRING SUMMER WINTER JUNE JULY MARCH APRIL MAY ONE TWO THREE FOUR FIVE SIX SEVEN
EIGHT NINE TEN ZERO MAN WOMAN BOY GIRL CHILD BABY FRIEND MOTHER FATHER SISTER FAMILY TEAM
SCHOOL CLASS TEST MATH ART BRAIN HEART HAND FOOT HEAD EYE EAR NOSE MOUTH ARM LEG BODY LIFE
LOVE JOY HOPE PEACE DREAM SLEEP WORK PLAY RUN JUMP WALK SWIM FLY SING READ WRITE DRAW COOK EAT
DRINK BUY SELL WIN LOSE FIND SEEK HIDE OK WAIT KEEP MAKE TAKE GIVE SEND CALL TALK ASK STAY
QUIET LOUD SOFT HARD CLEAN DIRTY SAFE DANGER KEY LOCK CODE DATA FILE DISK ROBOT MAGIC EXTRA
SUPER MEGA MINI MAX FUN COOL NICE GREAT BEST GOOD BAD POOR RICH YOUNG HAPPY SAD BRAVE CALM
MONDAY TUESDAY FRIDAY SUNDAY JANUARY AUGUST OCTOBER LONDON PARIS BERLIN ROME MADRID TOKYO
TODAY TOMORROW MORNING EVENING WELCOME PLEASE THANK SORRY CLOSED ENTRY PARKING TICKET STATION
AIRPORT PLATFORM FLOOR LIFT STAIRS OFFICE KITCHEN BATH HOSPITAL DOCTOR POLICE LIBRARY MUSEUM
TOTAL NUMBER DATE TIME HOUR MINUTE SECOND FIRST LAST NEXT BACK FRONT INSIDE OUTSIDE ABOVE BELOW
THE AND FOR YOU WITH FROM THIS THAT HERE THERE WHAT WHEN WHERE WHO HOW ARE NOT ALL ANY OUR YOUR
ORANGE PURPLE YELLOW WHITE BLACK BROWN PINK MENU FRESH SWEET SPICY SALAD BURGER CHIPS BEER WINE
DELIVERY RETURN CAREFUL WARNING PRIVATE PUBLIC SMOKING FISHING CAMPING RUNNING LEARN THINK SMILE
"""

WORDS: tuple[str, ...] = tuple(dict.fromkeys(_TEXT.split()))

_DIGITS = "0123456789"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_UNLIKE = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"  # no O with 0, no I with 1
_MIXED = "ABCDEFGHJKLMNPQRTUVWXYZabcdefghijkmnpqrstuvwxyz"  # no l, no o, no capital S


def is_held_out(text: str) -> bool:
    """Whether a text belongs to the test splits: about one in ten, settled by its hash."""
    return crc32(text.upper().encode()) % 10 == 0


def is_word(text: str) -> bool:
    """Whether a text is a word that means something, which a reader can guess half-read."""
    return text.upper() in _known()


@lru_cache(maxsize=1)
def _known() -> frozenset[str]:
    return frozenset(_vocabulary())


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[str, ...]:
    """The list above, and the names of things that are one word of letters."""
    names = (name.upper() for name in CONCEPTS if name.isascii() and name.isalpha())
    return tuple(dict.fromkeys((*WORDS, *names)))


@lru_cache(maxsize=2)
def _words(held_out: bool) -> tuple[str, ...]:
    return tuple(word for word in _vocabulary() if is_held_out(word) == held_out)


@lru_cache(maxsize=1)
def _letters_after() -> dict[str, str]:
    """What follows two letters in training's words (^ before, $ behind them), as often as there."""
    after: dict[str, str] = {}
    for word in _words(held_out=False):
        spelled = f"^^{word}$"
        for i in range(2, len(spelled)):
            after[spelled[i - 2 : i]] = after.get(spelled[i - 2 : i], "") + spelled[i]
    return after


def invented_word(rng: np.random.Generator) -> str:
    """Three to nine capitals that could be a word, of training's side."""
    after = _letters_after()
    while True:
        word = "^^"
        while not word.endswith("$") and len(word) < 12:
            letters = after[word[-2:]]
            word += letters[rng.integers(len(letters))]
        word = word[2:].rstrip("$")
        if 3 <= len(word) <= 9 and not is_held_out(word) and word not in _words(held_out=True):
            return word


def _word(rng: np.random.Generator, held_out: bool, invent: bool) -> str:
    if invent and rng.random() < INVENTED:
        return invented_word(rng)
    words = _words(held_out)
    return words[rng.integers(len(words))]


def random_text(rng: np.random.Generator, held_out: bool) -> str:
    """A word (half of the time) or a random string of 2-6 characters, of the wanted split.

    In capitals, small letters, or with a capital first.
    """
    draw = rng.random()
    while True:
        if draw < 0.55:
            text = _cased(_word(rng, held_out, invent=not held_out), rng)
        else:
            kinds = ((0.68, _LETTERS), (0.78, _MIXED), (0.93, _DIGITS), (1.0, _UNLIKE))
            alphabet = next(letters for share, letters in kinds if draw < share)
            picks = rng.integers(len(alphabet), size=rng.integers(2, 7))
            text = "".join(alphabet[pick] for pick in picks)
            if alphabet is _LETTERS and rng.random() < 0.4:
                text = text.lower()
        if is_held_out(text) == held_out:
            return text


def _cased(word: str, rng: np.random.Generator) -> str:
    return (word, word.lower(), word.capitalize())[int(np.searchsorted((0.4, 0.7), rng.random()))]


def random_price(rng: np.random.Generator) -> str:
    """What something costs: "$4.99", "3,50 €", "£12"."""
    whole = int(rng.integers(0, 10) if rng.random() < 0.5 else rng.integers(10, 200))
    cents = int(rng.integers(100)) if rng.random() < 0.5 else int(rng.choice([0, 49, 50, 95, 99]))
    draw = rng.random()
    if draw < 0.15:
        return f"{'$£€'[rng.integers(3)]}{whole + 1}"
    if draw < 0.35:
        return f"{whole},{cents:02d} €"
    if draw < 0.5:
        return f"{whole}.{cents:02d}"
    return f"{'$£€'[rng.integers(3)]}{whole}.{cents:02d}"


def random_line(rng: np.random.Generator, held_out: bool, words: int) -> str:
    """Several words as one would write them, with a mark or a number at times.

    Of a held-out line one word is held out at least, and of another none.
    """
    chosen = []
    for index in range(words):
        held = held_out and (index == 0 or rng.random() < 0.3)
        chosen.append(_word(rng, held, invent=not held_out))
    order = rng.permutation(words)
    style = rng.random()
    if style < 0.3:
        line = [chosen[i] for i in order]
    elif style < 0.6:
        line = [chosen[i].lower() for i in order]
    elif style < 0.85:
        line = [chosen[i].lower() for i in order]
        line[0] = line[0].capitalize()
    else:
        line = [chosen[i].capitalize() for i in order]
    if words > 1 and rng.random() < 0.15:
        line[rng.integers(1, words)] = str(rng.integers(1, 100))
        if held_out and not any(is_held_out(word) for word in line):
            line[0] = chosen[0].capitalize()
    text = " ".join(line)
    draw = rng.random()
    if draw < 0.2:
        text += "!?.:"[rng.integers(4)]
    elif draw < 0.25 and words > 1:
        text = text.replace(" ", " & ", 1)
    elif draw < 0.3 and words > 2:
        text = text.replace(" ", ", ", 1)
    return text
