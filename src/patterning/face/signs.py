"""Which way is up: what the sign of χ says for each kind of observable, in the words of help texts and pages."""

from textwrap import fill

from patterning.response.sample import COMPONENT_LOSS

WHICH_SIGN = (
    "χ_j > 0 means that weight moved onto sample j raises ⟨φ⟩, the mean of φ over the posterior around w*; χ_j < 0 "
    'that it lowers ⟨φ⟩. invert({name: +1}) asks for more of φ, invert({name: -1}) for less. What "stronger" means '
    "hangs on what φ is:",
    "A component loss, φ_C = L(w) - L(w*) with only the coordinates of component C free (nβ⟨φ_C⟩ is its local learning "
    "coefficient, in which nβ is a mere factor): less of it is stronger. A lower ⟨φ_C⟩ means that the data pins the "
    "component down more closely, and χ_j < 0 marks the samples that it serves: their losses rise together with L when "
    'chains move it. So invert({"l1h3": -1}) strengthens head l1h3, by this reading.',
    "A loss on a set of samples (in nats): less of it is better performance on that set, so ask for -1.",
    "A score where more is more of the structure (an accuracy, an attention score, a logit gap, a probe's output, a "
    "norm): ask for +1.",
    "All of this is the response of the posterior around w* with L inside φ_C held fixed. How a learning coefficient "
    "measured again under the new data moves is another quantity, often of the opposite sign (docs/llc-responses.md); "
    "and whether training follows is for retraining to decide (verify).",
)
"""Which sign strengthens this head? A paragraph each: the rule, three kinds of φ, and what it does not say."""

TITLE = "Which sign strengthens this head?"


def in_words(name: str, component: str, observable: str) -> str:
    """What a positive and a negative χ say of one row, as a caption."""
    if observable == COMPONENT_LOSS:
        return (
            f"Positive χ (blue): weighting this sample up raises ⟨φ⟩, the mean rise of the loss when chains move "
            f"{component} around w*. Negative χ (orange): weighting it up lowers ⟨φ⟩; these are the samples that "
            f"{component} serves. Less of φ is a stronger {component}: invert({{{name!r}: -1}})."
        )
    return (
        f"Positive χ (blue): weighting this sample up raises ⟨{observable}⟩. Negative χ (orange): weighting it up "
        f"lowers ⟨{observable}⟩. Where {observable} is a loss, less of it is better, invert({{{name!r}: -1}}); "
        f"where it is a score, more of it is more of the structure, invert({{{name!r}: 1}})."
    )


def as_docstring() -> str:
    """The paragraphs under their title, for `help`."""
    parts = [f"**{TITLE}** {WHICH_SIGN[0]}", *WHICH_SIGN[1:]]
    return "\n\n".join(fill(part, 120, initial_indent="    ", subsequent_indent="    ") for part in parts)
