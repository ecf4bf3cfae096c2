"""Text coloured by a number on each token, as HTML without scripts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

MORE, LESS = (31, 111, 235), (209, 84, 58)


def shade(value: float, largest: float) -> str:
    """Background of a token: blue for positive, red for negative, stronger towards `largest`."""
    red, green, blue = MORE if value > 0 else LESS
    return f"rgba({red},{green},{blue},{min(1.0, abs(value) / largest) * 0.75:.2f})"


def visible(piece: str) -> str:
    """A token with its line breaks shown; spaces stay as they are."""
    return piece.replace("\n", "⏎\n").replace("\t", "⇥\t")


def coloured_text(tokens: Sequence[str], scores: Sequence[float], largest: float = 3.0) -> Markup:
    """One block of text; hovering over a token shows its score."""
    parts = [
        Markup('<b title="{}" style="background:{}">{}</b>').format(f"{score:+.2f}", shade(score, largest), visible(t))
        for t, score in zip(tokens, scores, strict=True)
    ]
    return Markup('<div class="tokens">{}</div>').format(Markup("").join(parts))


def coloured_tokens(tokens: Sequence[str], scores: Sequence[float], largest: float, marked: int = -1) -> Markup:
    """Text in a line of a list; NaN is no score. The token number `marked` stands out without its colour as well."""
    parts = []
    for k, (piece, score) in enumerate(zip(tokens, scores, strict=True)):
        tag = "mark" if k == marked else "b"
        words = piece.replace("\n", "⏎").replace("\t", "⇥")
        if math.isnan(score):
            parts.append(Markup("<{}>{}</{}>").format(tag, words, tag))
        else:
            parts.append(
                Markup('<{} title="{}" style="background:{}">{}</{}>').format(
                    tag, f"{score:+.3g}", shade(score, largest), words, tag
                )
            )
    return Markup('<span class="text">{}</span>').format(Markup("").join(parts))


def contexts(places: Sequence[Mapping[str, Any]], title: str, largest: float = 3.0) -> Markup:
    """Places as lines: score, domain, what stands before (quiet), and the predicted token (coloured)."""
    lines = [
        Markup('<i>{} {}  {}</i><b style="background:{}">{}</b>').format(
            f"{place['score']:+.2f}".rjust(6),
            str(place["domain"]).ljust(6),
            place["before"].replace("\n", "⏎").replace("\t", "⇥")[-70:].rjust(70),
            shade(place["score"], largest),
            place["token"].replace("\n", "⏎").replace("\t", "⇥"),
        )
        for place in places
    ]
    return Markup("<h3>{}</h3>").format(escape(title)) + Markup('<div class="tokens">{}</div>').format(
        Markup("\n").join(lines)
    )
