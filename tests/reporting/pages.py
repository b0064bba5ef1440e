"""Reading a page as a browser does: whether it is well-formed, what it says, and what it would load."""

import html.parser

_ALONE = {"img", "meta"}


class Page(html.parser.HTMLParser):
    """A parsed page.

    Attributes:
      text: what is written on it, a line for each piece of text.
      tables: its tables, each a list of rows of cells' texts.
      loads: values of what makes a browser load something.
      links, ids, tags: targets of links, names of elements, how often each element occurs.
    """

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.tables, self.loads, self.links, self.ids, self.tags = [], "", [], [], [], [], {}
        assert page.startswith("<!DOCTYPE html>\n<html")
        self.feed(page)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        assert len(self.ids) == len(set(self.ids))
        assert all(link[1:] in self.ids for link in self.links if link.startswith("#"))

    def handle_starttag(self, tag, attributes):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for name, value in attributes:
            assert not name.startswith("on"), f"a script in {name}={value}"
            if name == "id":
                self.ids.append(value)
            if name == "href":
                self.links.append(value)
            if name in ("src", "srcset", "data", "poster", "xlink:href") or "url(" in (value or ""):
                self.loads.append(value)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in _ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in _ALONE:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            assert "@import" not in data and "url(" not in data
            return
        self.text += data + "\n"
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    def row(self, name):
        """Cells of the first row that `name` begins, after it."""
        return next(row[1:] for table in self.tables for row in table if row[0] == name)
