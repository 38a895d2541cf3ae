"""Numbers and names as a reader sees them."""

import math
from typing import Any

from jaxmeter.metrics import Interval
from jaxmeter.terminal import one_line

# --- Numbers as text.


def percent(rate: float) -> str:
    """A rate for reading: one decimal, two below 1%.

    >>> percent(0.1234), percent(0.001), percent(0.0), percent(1.0), percent(0.9999)
    ('12.3%', '0.10%', '0%', '100%', '>99.9%')
    """
    if math.isnan(rate):
        return "unknown"
    if rate in (0, 1):
        return f"{rate:.0%}"
    if rate > 0.9995:
        return ">99.9%"
    return f"{rate:.1%}" if rate >= 0.00995 else f"{rate:.2%}" if rate >= 5e-5 else "<0.01%"


def rate_name(fpr: float) -> str:
    """A rate as a name, with no digits added: "1%", "0.1%"."""
    return f"{100 * fpr:g}%"


def percents(interval: Interval) -> str:
    """An interval of rates, e.g. "9.4–15.7%"."""
    return dashed(percent(interval.low), percent(interval.high))


def dashed(low: str, high: str) -> str:
    """An interval of numbers as text; the first unit is left off, as it is that of the second.

    >>> dashed("9.4%", "15.7%"), dashed("<0.01%", "2.0%"), dashed("−0.012", "+0.030")
    ('9.4–15.7%', '<0.01% – 2.0%', '−0.012 to +0.030')
    """
    if set("+−") & set(low + high):
        return f"{low} to {high}"
    return f"{low} – {high}" if set("<>") & set(low + high) else f"{low.removesuffix('%')}–{high}"


def signed(value: float) -> str:
    """A difference with its sign."""
    return f"{value:+.3f}".replace("-", "−")


def p_value(value: float) -> str:
    """A p-value with its relation."""
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def plural(count: int, noun: str) -> str:
    """ "1 model", "2 models"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def clean(text: Any) -> str:
    """One printable line, for labels that come from users."""
    return one_line(text)


def shortened(name: str, width: int = 30) -> str:
    """At most `width` characters of a name, on one line; names often differ at their end.

    >>> shortened("gradients of dense_3", 12)
    'gradie…nse_3'
    """
    return one_line(name, width)


def duration(seconds: float) -> str:
    """Wall time for reading.

    >>> duration(0.004), duration(3.21), duration(75), duration(4000)
    ('<0.01 s', '3.2 s', '1:15 min', '1:07 h')
    """
    if seconds < 60:
        return "<0.01 s" if seconds < 0.005 else f"{seconds:.{2 if seconds < 1 else 1}f} s"
    whole, unit = (round(seconds), "min") if seconds < 3600 else (round(seconds / 60), "h")
    return f"{whole // 60}:{whole % 60:02d} {unit}"
