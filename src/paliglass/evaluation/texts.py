"""How right a text is: CIDEr, VQA accuracy, ANLS, character and word errors."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein

__all__ = [
    "ENOUGH",
    "GRAMS",
    "SPREAD",
    "anls",
    "character_errors",
    "cider",
    "exact",
    "normalize_vqa",
    "vqa_accuracy",
    "word_errors",
]

GRAMS = 4  # CIDEr counts n-grams of one word up to so many
SPREAD = 6.0  # CIDEr-D's tolerance for another length, in words
ENOUGH = 3  # people who gave an answer, for it to be all right in VQA

# What VQA's scorer drops, but between digits; and what it takes for nothing even there.
_SEPARATORS = re.compile(r"[;/\[\]\"{}()=+\\_\-><@`,?!]")
_COMMA_IN_NUMBER = re.compile(r"(\d)(,)(\d)")
_FULL_STOP = re.compile(r"(?!<=\d)(\.)(?!\d)")
_NUMBERS = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
# Each is recognised with any one of its apostrophes left out, and no more. (The scorer's table has
# I'm and its like too, which never meet its lower-case words.)
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't
    hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am
    mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't
    she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll
    who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've
    you'd you'd've you'll you're you've""".split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # as it is there


def exact(prediction: str, references: Sequence[str]) -> float:
    """1 where it is one of the right answers, apart from spaces at its ends; else 0."""
    return float(prediction.strip() in {reference.strip() for reference in references})


def normalize_vqa(answer: str) -> str:
    """An answer as VQA's scorer compares it: lower case, digits, no articles or punctuation.

    The evaluation of VQA v2 (arXiv 1505.00468); contractions get their apostrophes.
    """
    text = " ".join(answer.split())
    drop = bool(_COMMA_IN_NUMBER.search(text))

    def separator(match: re.Match[str]) -> str:
        mark = match[0]
        spaced = f"{mark} " in text or f" {mark}" in text
        return "" if spaced or drop else " "

    text = _FULL_STOP.sub("", _SEPARATORS.sub(separator, text))
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(prediction: str, references: Sequence[str]) -> float:
    """min(1, people who say so / 3), the mean over leaving each of them out (arXiv 1505.00468).

    VQA has ten answers a question. Where there are fewer than four, all the others must agree, and
    of one alone it is whether that is met.
    """
    given = normalize_vqa(prediction)
    right = [normalize_vqa(reference) for reference in references]
    if len(right) == 1:
        return float(given == right[0])
    shares = []
    for left_out in range(len(right)):
        agree = sum(given == other for i, other in enumerate(right) if i != left_out)
        shares.append(min(1.0, agree / min(ENOUGH, len(right) - 1)))
    return sum(shares) / len(shares)


def anls(prediction: str, references: Sequence[str], threshold: float = 0.5) -> float:
    """1 − the share of characters to change, from the nearest answer; 0 from `threshold` on.

    Average normalised Levenshtein similarity is the mean of it (arXiv 1907.00490). Case is not
    told.
    """
    given = prediction.strip().lower()
    changes = min(
        Levenshtein.normalized_distance(given, reference.strip().lower())
        for reference in references
    )
    return 1 - changes if changes < threshold else 0.0


def character_errors(prediction: str, references: Sequence[str]) -> tuple[int, int]:
    """Characters to change for the nearest answer, and how many that has; sums give the rate."""
    return min(_errors(prediction, reference) for reference in references)


def word_errors(prediction: str, references: Sequence[str]) -> tuple[int, int]:
    """`character_errors` in words."""
    return min(_errors(prediction.split(), reference.split()) for reference in references)


def _errors(prediction: Sequence[str], reference: Sequence[str]) -> tuple[int, int]:
    return Levenshtein.distance(prediction, reference), len(reference)


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption against its references (arXiv 1411.5726); the mean is the score.

    TF-IDF vectors of 1- to 4-grams, how rare an n-gram is taken from all pictures' references,
    clipped, with a penalty for another length, ×10. Of one picture alone all n-grams are equally
    rare, and the score is 0. Words are lower case without punctuation.
    """
    counted = [[_grams(text) for text in texts] for texts in references]
    pictures: Counter[tuple[str, ...]] = Counter()
    for texts in counted:
        pictures.update({gram for grams in texts for gram in grams})
    total = math.log(max(len(counted), 1))

    def vectors(grams: Counter[tuple[str, ...]]) -> list[dict[tuple[str, ...], float]]:
        found: list[dict[tuple[str, ...], float]] = [{} for _ in range(GRAMS)]
        for gram, count in grams.items():
            found[len(gram) - 1][gram] = count * (total - math.log(max(pictures[gram], 1)))
        return found

    scores = []
    for prediction, texts in zip(predictions, counted, strict=True):
        grams = _grams(prediction)
        predicted = vectors(grams)
        alike = []
        for reference in texts:
            gap = _length(grams) - _length(reference)
            penalty = math.exp(-(gap**2) / (2 * SPREAD**2))
            pairs = zip(predicted, vectors(reference), strict=True)
            alike.append(penalty * np.mean([_cosine(a, b) for a, b in pairs]))
        scores.append(10 * float(np.mean(alike)))
    return scores


def _grams(text: str) -> Counter[tuple[str, ...]]:
    words = re.findall(r"[\w'-]+", text.lower())
    return Counter(
        tuple(words[i : i + n]) for n in range(1, GRAMS + 1) for i in range(len(words) - n + 1)
    )


def _length(grams: Counter[tuple[str, ...]]) -> int:
    """How many pairs of words: the length that CIDEr-D's reference code compares."""
    return sum(count for gram, count in grams.items() if len(gram) == 2)


def _cosine(a: dict[tuple[str, ...], float], b: dict[tuple[str, ...], float]) -> float:
    """Cosine in which no n-gram counts more often than the reference has it."""
    shared = sum(min(weight, b[gram]) * b[gram] for gram, weight in a.items() if gram in b)
    norms = math.hypot(*a.values()) * math.hypot(*b.values())
    return shared / norms if norms else 0.0
