"""The templates of the pages, and the macros that draw their charts."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import time
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from ..version import __version__
from . import numbers

_TEMPLATES = Path(__file__).parent / "templates"


def rendered(template: str, **values: Any) -> str:
    """A template with the page's style and script, which are all it may use."""
    style, script = (Markup((_TEMPLATES / name).read_text(encoding="utf-8")) for name in ("style.css", "script.js"))
    digest = base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode()
    values |= {"style": style, "script": script, "script_hash": digest}
    values |= {"version": __version__, "made": numbers.moment(time.time())}
    return _environment().get_template(template).render(values)


def drawn(chart: str, **values: Any) -> Markup:
    """Return what the macro `chart` of charts.html makes of `values`."""
    macro = getattr(_environment().get_template("charts.html").module, chart)
    return Markup(macro(**values))


@functools.cache
def _environment() -> Environment:
    made = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"figure": numbers.figure, "percent": numbers.percent, "coordinate": numbers.coordinate}
    made.filters["headings"] = _headings
    return made


def _headings(sections: str) -> list[tuple[str, str]]:
    """Id and title of each section of a page."""
    return re.findall(r'<h2 id="([a-z]+)">([^<]+)</h2>', sections)
