# SPDX-License-Identifier: BSD-3-Clause
"""The page itself: style sheet, sections, tables, tiles and figures."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Markup", "Tile", "figure", "page", "scrolling", "section", "table", "tiles"]


class Markup(str):
    """Text that is HTML already; every other string is escaped where it is put into a page."""


@dataclass(frozen=True)
class Tile:
    """One large figure.

    Attributes:
        value: as it is shown, e.g. `3.1x`.
        label: what it is, a few words.
        series: 0 to 5, the colour.
    """

    value: str
    label: str
    series: int


def page(title: str, subtitle: str, body: Sequence[Markup], footer: str) -> str:
    """A whole document.

    Args:
        title: also of the window.
        subtitle: one or two sentences under it.
        body: sections, tiles, figures.
        footer: where and when it was made.

    Returns:
        HTML that refers to nothing outside of itself.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{_escape(title)}</h1><p>{_escape(subtitle)}</p></header>\n"
        f"<main>\n{chr(10).join(body)}\n</main>\n<footer>{_escape(footer)}</footer>\n"
        "</body>\n</html>\n"
    )


def section(name: str, heading: str, lead: str, *parts: Markup) -> Markup:
    """A card with a heading and a sentence; `name` is its anchor."""
    return Markup(
        f'<section id="{html.escape(name, quote=True)}"><h2>{_escape(heading)}</h2>'
        f"<p>{_escape(lead)}</p>{''.join(parts)}</section>"
    )


def tiles(items: Sequence[Tile]) -> Markup:
    """Large figures in a row."""
    cells = "".join(
        f'<div class="tile s{item.series}"><b>{_escape(item.value)}</b>'
        f"<span>{_escape(item.label)}</span></div>"
        for item in items
    )
    return Markup(f'<div class="tiles">{cells}</div>')


def table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: Sequence[int] = (0,)
) -> Markup:
    """A table; numbers are set to the right.

    Args:
        headings: one a column.
        rows: cells, escaped unless they are `Markup`.
        text_columns: those set to the left.

    Returns:
        A `<table>` that scrolls sideways where the window is narrow.

    Raises:
        ValueError: a row of another length.
    """
    for row in rows:
        if len(row) != len(headings):
            raise ValueError(
                f"a row has {len(row)} cells, the table {len(headings)} columns: {row}"
            )

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=text' if index in text_columns else ''}>{_escape(cell)}</{tag}>"
            for index, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return Markup(
        f'<div class="scroll"><table><thead><tr>{cells("th", headings)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def scrolling(chart: Markup) -> Markup:
    """A chart that keeps a legible size in a narrow window, and scrolls sideways there."""
    return Markup(f'<div class="scroll">{chart}</div>')


def figure(picture: Markup, caption: str, kind: str = "") -> Markup:
    """A picture with words under it; `kind` is a class of the style sheet (`strip`, `wide`)."""
    return Markup(
        f'<figure class="{html.escape(kind, quote=True)}">{picture}'
        f"<figcaption>{_escape(caption)}</figcaption></figure>"
    )


def _escape(text: str) -> str:
    return text if isinstance(text, Markup) else html.escape(text)


_STYLE = """
:root{--paper:#f6f7f9;--card:#fff;--ink:#16202e;--soft:#5b6878;--rule:#e3e7ec;
--s0:#64748b;--s1:#0d9488;--s2:#d97706;--s3:#7c3aed;--s4:#e11d48;--s5:#2563eb;
color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--paper:#0e1319;--card:#171e27;--ink:#e8edf3;
--soft:#98a5b5;--rule:#2a3441;--s0:#94a3b8;--s1:#2dd4bf;--s2:#fbbf24;--s3:#a78bfa;--s4:#fb7185;
--s5:#60a5fa}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
header,main,footer{max-width:1080px;margin:0 auto;padding:0 24px}
header{padding-top:56px}h1{font-size:clamp(28px,4vw,42px);line-height:1.15;margin:0;
letter-spacing:-.02em}
header p{max-width:64ch;color:var(--soft);font-size:18px;margin:12px 0 28px}
h2{font-size:21px;margin:0 0 4px;letter-spacing:-.01em}
h3{font-size:15px;margin:22px 0 8px;color:var(--soft);font-weight:600}
section{background:var(--card);border:1px solid var(--rule);border-radius:14px;padding:26px 28px;
margin:0 0 22px}
section>p{color:var(--soft);margin:0 0 18px;max-width:76ch}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:16px;
margin:0 0 22px}
.tile{background:var(--card);border:1px solid var(--rule);border-radius:14px;padding:18px 22px;
border-top:4px solid currentColor}
.tile b{display:block;font-size:34px;line-height:1.2;letter-spacing:-.02em}
.tile span{color:var(--soft);font-size:14.5px}
.s0{color:var(--s0)}.s1{color:var(--s1)}.s2{color:var(--s2)}.s3{color:var(--s3)}
.s4{color:var(--s4)}.s5{color:var(--s5)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:15px}
th{color:var(--soft);font-weight:600;font-size:13px;vertical-align:bottom}
th,td{padding:9px 12px;text-align:right;border-bottom:1px solid var(--rule)}
td{white-space:nowrap;vertical-align:top}
tbody tr:last-child td{border-bottom:0}
.text{text-align:left}td.text{white-space:normal;overflow-wrap:anywhere}
th:first-child,td:first-child{padding-left:0}
td small{display:block;color:var(--soft);font-size:13px}
code{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.chart{width:100%;height:auto;display:block}.scroll>.chart,.tall>.chart{min-width:600px}
.chart text{font-size:13px;fill:var(--soft)}.chart text.strong{fill:var(--ink);font-weight:600;
font-size:14px}
.grid{stroke:var(--rule);fill:none}.mark{stroke:var(--soft);stroke-dasharray:2 4;fill:none}
.line{fill:none;stroke:currentColor;stroke-width:2.5;stroke-linejoin:round}
.line.dashed{stroke-dasharray:5 5;stroke-width:1.6;opacity:.75}
.dot,.bar{fill:currentColor}.dot{stroke:var(--card);stroke-width:1}
.quiet{opacity:.45}.line.quiet{stroke-width:1.4}.track{fill:var(--rule);opacity:.55}
.lead{fill:none;stroke:currentColor;opacity:.5}
.front{fill:none;stroke:var(--s0);stroke-width:12;opacity:.2;stroke-linejoin:round;
stroke-linecap:round}
.chart text.name{fill:currentColor;font-weight:600}
.chart text.code{font:12.5px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;fill:var(--ink)}
.gallery.masks{margin-top:24px}.chart+.scroll,.scroll+.scroll{margin-top:20px}
.tall{max-height:660px;overflow-y:auto}
.legend{display:flex;flex-wrap:wrap;gap:4px 20px;font-size:14px;color:var(--soft);
margin-bottom:10px}
.entry{display:inline-flex;align-items:center;gap:8px}
.key{width:20px;height:0;border-top:4px solid currentColor;border-radius:2px}
.key.dashed{border-top:2px dashed currentColor}
.gallery{display:grid;grid-template-columns:repeat(auto-fit,minmax(220px,1fr));gap:20px;
align-items:start}
.gallery.wide{grid-template-columns:repeat(auto-fit,minmax(min(340px,100%),1fr));gap:12px 36px}
figure{margin:0;min-width:0}
figcaption{color:var(--soft);font-size:13.5px;line-height:1.45;margin-top:8px}
.pixels{display:block;width:100%;height:auto;image-rendering:pixelated;
border:1px solid var(--rule);border-radius:6px}
.strip{display:grid;grid-template-columns:repeat(auto-fill,minmax(84px,1fr));gap:10px}
.strip figcaption{text-align:center;margin-top:4px}
footer{color:var(--soft);font-size:13.5px;padding-top:6px;padding-bottom:48px}
@media(max-width:600px){section{padding:20px 18px}header{padding-top:32px}}
"""
