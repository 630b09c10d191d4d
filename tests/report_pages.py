"""Reports, and the elements and words of their pages."""

from html.parser import HTMLParser
from pathlib import Path

from unsloth_accel import report


class Tags(HTMLParser):
    """Every element with its attributes, and the text between."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data


def html_of(directory: Path) -> str:
    return report.write(directory).read_text(encoding="utf-8")
