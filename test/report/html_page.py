"""What a browser would find in a report: tables, text, pictures and everything it would load."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path


class HtmlPage(HTMLParser):
    """`tables`: rows of cell texts, per table; `tags`; `links`: every src, href, ...; `text`."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: list[list[list[str]]] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ''
        self.styles = ''
        self._open: list[str] = []
        self.feed(path.read_text(encoding='utf-8'))
        self.close()

    def table(self, *titles: str) -> list[dict[str, str]]:
        """Return the rows of the first table whose header has all these titles."""
        for head, *rows in self.tables:
            if set(titles) <= set(head):
                return [dict(zip(head, row, strict=True)) for row in rows]
        raise AssertionError(f'no table with {titles}')

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open.append(tag)
        loading = ('src', 'href', 'srcset', 'action', 'data', 'poster', 'background')
        self.links += [value or '' for name, value in attributes if name in loading]
        if tag == 'table':
            self.tables.append([])
        elif tag == 'tr':
            self.tables[-1].append([])
        elif tag in ('td', 'th'):
            self.tables[-1][-1].append('')

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if 'style' in self._open:
            self.styles += data
            return
        self.text += data
        if 'td' in self._open or 'th' in self._open:
            self.tables[-1][-1][-1] += data
