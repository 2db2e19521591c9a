"""What failed most often in an evaluation, in a few lines."""

from collections import Counter
from collections.abc import Sequence

from dalle_2.evaluation.exact_match import ATTRIBUTES, Verdict, aggregate

MOST = 3


def failures(verdicts: Sequence[Verdict]) -> str:
    """As a Markdown list: why pictures could not be read, and what was least often right in those that could."""
    lines = [*_unreadable(verdicts), *_wrong([verdict for verdict in verdicts if verdict.reason is None])]
    return "\n".join(f"- {line}" for line in lines) or "Nothing failed."


def _unreadable(verdicts: Sequence[Verdict]) -> list[str]:
    """The kinds of reasons, the most frequent first."""
    kinds = Counter(verdict.reason.partition(":")[0] for verdict in verdicts if verdict.reason is not None)
    if not kinds:
        return []
    named = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common(MOST))
    return [f"{kinds.total():,} of {len(verdicts):,} pictures could not be read, most often because: {named}"]


def _wrong(verdicts: Sequence[Verdict]) -> list[str]:
    """The attributes that were not always right, the worst first."""
    rates = [(name, rate) for name, rate in aggregate(verdicts).items() if name in ATTRIBUTES and name != "exact"]
    wrong = [(rate.value, name, rate.n) for name, rate in rates if rate.value is not None and rate.value < 1]
    named = ", ".join(f"{name} ({100 * value:.1f} % of {n:,})" for value, name, n in sorted(wrong)[:MOST])
    return [f"least often right in pictures that could be read: {named}"] if wrong else []
