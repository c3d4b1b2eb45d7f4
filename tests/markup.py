"""What can be said of a page without a browser: whether it is HTML, and can be used by those who do not see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from xml.etree.ElementTree import Element

import html5lib

_FIELDS = ("input", "select", "textarea")
_REFERRING = ("for", "aria-describedby", "aria-labelledby", "list")


def faults(text: str) -> list[str]:
    """Return what is wrong with a page.

    Parameters
    ----------
    text : str
        Its HTML.

    Returns
    -------
    list of str
        One line each; empty if nothing is.
    """
    parser = html5lib.HTMLParser(namespaceHTMLElements=False)
    page = parser.parse(text)
    found = [f"line {place[0]}: {code} {more}" for place, code, more in parser.errors]
    return [
        *found,
        *_named(page),
        *_labelled(page),
        *_headed(page),
        *_tabled(page),
        *_landmarks(page),
        *_contained(page),
    ]


def words(element: Element) -> str:
    """Return the text of an element, in one line."""
    return " ".join("".join(element.itertext()).split())


def main_of(text: str) -> str:
    """Return the words of the main part of a page, in one line."""
    page = html5lib.parse(text, namespaceHTMLElements=False)
    main = page.find(".//main")
    assert main is not None, text
    return words(main)


def _named(page: Element) -> Iterator[str]:
    names = Counter(name for one in page.iter() if (name := one.get("id")))
    yield from (f"id {name} is there {count} times" for name, count in names.items() if count > 1)
    for one in page.iter():
        for attribute in _REFERRING:
            yield from (
                f"{attribute} of {one.tag} names {name}" for name in one.get(attribute, "").split() if name not in names
            )
        link = one.get("href", "")
        if link.startswith("#") and link[1:] not in names:
            yield f"{link} leads nowhere"


def _labelled(page: Element) -> Iterator[str]:
    labels = {one.get("for"): words(one) for one in page.iter("label")}
    for one in (one for tag in _FIELDS for one in page.iter(tag)):
        if one.get("type") != "hidden" and not (one.get("aria-label") or labels.get(one.get("id"))):
            yield f"{one.tag} {one.get('name')} has no label"
    for tag in ("a", "button", "summary"):
        yield from (f"{tag} without words" for one in page.iter(tag) if not (words(one) or one.get("aria-label")))
    yield from (f"image {one.get('src')} without words" for one in page.iter("img") if one.get("alt") is None)
    for group in page.iter("fieldset"):
        if group.find("legend") is None:
            yield "fieldset without legend"


def _headed(page: Element) -> Iterator[str]:
    title = page.find("head/title")
    if title is None or not words(title):
        yield "no title"
    if not page.get("lang"):
        yield "no language"
    levels = [int(one.tag[1]) for one in page.iter() if one.tag in ("h1", "h2", "h3", "h4", "h5", "h6")]
    if levels.count(1) != 1:
        yield f"{levels.count(1)} first headings"
    for before, after in zip(levels, levels[1:], strict=False):
        if after > before + 1:
            yield f"a heading {after} follows a heading {before}"


def _tabled(page: Element) -> Iterator[str]:
    for table in page.iter("table"):
        caption = table.find("caption")
        if caption is None or not words(caption):
            yield "a table without caption"
        yield from (f"th {words(one)} without scope" for one in table.iter("th") if not one.get("scope"))
        if table.find("thead") is None:
            yield "a table without heads"


def _landmarks(page: Element) -> Iterator[str]:
    if len(list(page.iter("main"))) != 1:
        yield "not one main part"
    labels = [one.get("aria-label") for one in page.iter() if one.tag == "nav" or one.get("role") == "region"]
    for label, count in Counter(labels).items():
        if count > 1 or not label:
            yield f"{count} landmarks are called {label}"
    for one in page.iter():
        if one.tag == "div" and one.get("class") == "scroll" and one.get("tabindex") != "0":
            yield "what scrolls cannot be reached by keys"
        if int(one.get("tabindex", "0")) > 0:
            yield f"{one.tag} changes the order of keys"


def _contained(page: Element) -> Iterator[str]:
    """What the policy of the pages forbids, or would let others in."""
    for one in page.iter():
        if one.tag == "style" or one.tag == "script" and not one.get("src"):
            yield f"{one.tag} within the page"
        yield from (f"{name} of {one.tag}" for name in one.attrib if name == "style" or str(name).startswith("on"))
        if one.tag in ("script", "link", "img", "form"):
            address = one.get("src") or one.get("href") or one.get("action") or "/"
            if not address.startswith(("/", "data:,", "#")) or address.startswith("//"):
                yield f"{one.tag} of {address}"
    for form in page.iter("form"):
        names = {one.get("name") for one in form.iter("input")}
        if form.get("method", "get").lower() == "post" and "csrfmiddlewaretoken" not in names:
            yield f"the form of {form.get('action')} has no token"
