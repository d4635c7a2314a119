"""A reader of the pages that privet writes, for tests: tags, attributes and the text of each block."""

from html.parser import HTMLParser

BLOCKS = {"p", "li", "figure", "table", "dl", "header"}  # the smallest of these must hold a claim whole
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Tags, attributes, and the text of each block; checks on the way that every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.blocks: list[list[str]] = [[]]
        self.closed_blocks: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in BLOCKS:
            self.blocks.append([])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in BLOCKS:
            self.closed_blocks.append(" ".join(" ".join(self.blocks.pop()).split()))

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.blocks[-1].append(data)
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    @property
    def ids(self) -> set[str | None]:
        return {attributes["id"] for _, attributes in self.tags if "id" in attributes}
