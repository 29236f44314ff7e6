"""Finds the allowed words that are similar to a wrong one."""

from collections.abc import Iterable
from difflib import SequenceMatcher

MIN_SIMILARITY = 0.6  # ratio of difflib, 0..1, from which a word is suggested


def close_matches(word: str, allowed: Iterable[str]) -> list[str]:
    """Returns at most two similar words, the most similar first; equally similar ones in order.

    Words that begin with `word`, of three letters or more, are similar too.
    """
    similarity: dict[str, float] = {}
    for option in allowed:
        ratio = SequenceMatcher(None, word.lower(), option.lower()).ratio()
        is_beginning = len(word) > 2 and option.lower().startswith(word.lower())
        if ratio >= MIN_SIMILARITY or is_beginning:
            similarity[option] = ratio
    return sorted(similarity, key=lambda option: -similarity[option])[:2]


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Returns `nearest a, b; `, or the empty string if no allowed word is similar."""
    matches = close_matches(word, allowed)
    return f"nearest {', '.join(matches)}; " if matches else ""
