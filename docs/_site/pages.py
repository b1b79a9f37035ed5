"""What the site needs beside the pages in docs/, as hooks of MkDocs (see `hooks` in mkdocs.yml).

Pages point to files outside of docs/ (an example, SECURITY.md), as it is right in a checkout. Each such file becomes a
page under `source/`, and the links lead there. A site that would ask another host for anything is refused.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

CHECKOUT = Path(__file__).resolve().parents[2]
ALWAYS = ("SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md")
"""Files of the checkout that the navigation names."""

LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)#\s]+)")
ASKS = re.compile(
    r"""<(?:script|img|iframe|source|audio|video|embed)\b[^>]*\bsrc=["']?(?:https?:)?//"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preload|preconnect|dns-prefetch|icon|modulepreload|manifest))[^>]*\bhref=["']?(?:https?:)?//"""
    r"""|url\(\s*["']?(?:https?:)?//|@import\s+["'](?:https?:)?//|class=["']?mermaid"""
)


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add a page for each file outside of docs/ that a page points to, and for those that these point to."""
    waiting = {PurePosixPath(name) for name in ALWAYS}
    for file in files.documentation_pages():
        waiting |= set(_outside(PurePosixPath("docs", file.src_uri), file.content_string))
    done: set[PurePosixPath] = set()
    while waiting:
        path = waiting.pop()
        done.add(path)
        text = _as_page(path)
        files.append(File.generated(config, _page(path), content=text, inclusion=InclusionLevel.NOT_IN_NAV))
        if path.suffix == ".md":
            waiting |= set(_outside(path, text)) - done


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links to what lies outside of docs/ lead to its page."""
    own = page.file.src_uri
    at = PurePosixPath(own.removeprefix("source/")) if own.startswith("source/") else PurePosixPath("docs", own)
    if page.file.generated_by and at.suffixes[-2:-1] == [".py"]:
        return markdown

    def led(link: re.Match[str]) -> str:
        to = _target(at, link[1])
        site = str(to.relative_to("docs")) if to.is_relative_to("docs") else _page(to)
        return relpath(site, str(PurePosixPath(own).parent))

    return LINK.sub(led, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that asks another host for a script, a style, a font or a picture."""
    site = Path(config.site_dir)
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        if found := ASKS.search(path.read_text()):
            raise PluginError(f"{path.relative_to(site)} asks another host: {found[0]}")


def _outside(at: PurePosixPath, text: str) -> Iterator[PurePosixPath]:
    for link in LINK.findall(text):
        to = _target(at, link)
        if not to.is_relative_to("docs") and (CHECKOUT / to).exists():
            yield to


def _target(at: PurePosixPath, link: str) -> PurePosixPath:
    return PurePosixPath(normpath(at.parent / link))


def _page(path: PurePosixPath) -> str:
    return f"source/{path}" if path.suffix == ".md" else f"source/{path}.md"


def _as_page(path: PurePosixPath) -> str:
    """The file as Markdown: itself, its code, or the list of a folder's files."""
    here = CHECKOUT / path
    if path.suffix == ".md":
        return here.read_text()
    if here.is_dir():
        parts = [_code(each.relative_to(CHECKOUT)) for each in sorted(here.iterdir()) if each.is_file()]
        return f"# {path}\n\n" + "\n".join(parts)
    return f"# {path}\n\n{_code(path)}"


def _code(path: PurePosixPath) -> str:
    language = {".py": "python", ".yml": "yaml", ".toml": "toml", ".ini": "ini"}.get(path.suffix, "text")
    return f"## {path.name}\n\n`````{language}\n{(CHECKOUT / path).read_text()}`````\n"
