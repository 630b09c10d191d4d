"""The report of a run, or of two: one HTML page that needs nothing else, made without torch in a second.

`run_record` reads what a run left, `figures` reckons, `svg` lays charts out, `run_page` and `compare_page` put a page
together, and `rendering` fills the templates, which hold all the markup.
Whatever a user or a model wrote is escaped (jinja2's autoescape), and the page's own
Content-Security-Policy lets it load nothing and run no script but its own.
"""

from __future__ import annotations

from pathlib import Path

from ..artifacts.own_files import in_the_way
from ..artifacts.run_directory import RunDirectory
from ..errors import ConfigError, Problem, raise_errors
from ..files import why_unwritten, write_atomically

_MADE = "Made by unsloth_accel"
"""Words at the foot of every page."""


def write(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of the run in `run_dir`, by default to its report.html; returns where it is.

    Raises `ConfigError` where the directory is no run's, or `out` can't be written.
    """
    from .run_page import page_of_run
    from .run_record import read_run_record

    html = page_of_run(read_run_record(run_dir))
    return _write(html, Path(out or RunDirectory(run_dir).report), asked=out is not None)


def write_comparison(first: str | Path, second: str | Path, out: str | Path | None = None) -> Path:
    """Write a page that sets the second run beside the first, by default into the second's directory."""
    from .compare_page import comparison_page
    from .run_record import read_run_record

    html = comparison_page(read_run_record(first), read_run_record(second))
    usual = Path(second, f"compared-with-{Path(first).absolute().name}.html")
    return _write(html, Path(out or usual), asked=out is not None)


def _write(html: str, path: Path, *, asked: bool) -> Path:
    """Write a page to `path`, where there is nothing or a page of ours."""
    raise_errors(in_the_way(path, lambda text: _MADE in text, "--out" if asked else path.name))
    try:
        write_atomically(path, html)
    except OSError as error:
        reason, fix = why_unwritten(error, path.parent)
        consequence, fix = f"can't be written: {reason}.", f"{fix}, or choose another file"
        raise ConfigError(Problem(key="--out", value=str(path), consequence=consequence, fix=fix)) from None
    return path
