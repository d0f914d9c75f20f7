"""Makes Office files as small as their readers allow. Real Office files have more parts, which are not read."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from html import escape

_W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_A = "http://schemas.openxmlformats.org/drawingml/2006/main"
_P = "http://schemas.openxmlformats.org/presentationml/2006/main"
_S = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_R = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"
_STYLES = '<cellXfs><xf numFmtId="0"/><xf numFmtId="14"/></cellXfs>'


def packed(parts: Mapping[str, str | bytes]) -> bytes:
    """Return a ZIP archive of these parts."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file.getvalue()


def core(title: str, created: str) -> str:
    """Return a file's properties."""
    return (
        '<cp:coreProperties xmlns:cp="http://schemas.openxmlformats.org/package/2006/metadata/core-properties" '
        'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:dcterms="http://purl.org/dc/terms/">'
        f"<dc:title>{escape(title)}</dc:title><dcterms:created>{created}</dcterms:created></cp:coreProperties>"
    )


def document(body: str, **parts: str | bytes) -> bytes:
    """Return a document. `body` is the XML in its `w:body`."""
    main = f'<w:document xmlns:w="{_W}"><w:body>{body}</w:body></w:document>'
    return packed({"[Content_Types].xml": "", "word/document.xml": main, **parts})


def paragraph(*runs: str, hidden: str | None = None) -> str:
    """Return a paragraph of runs, with a hidden run at its end."""
    unseen = f"<w:r><w:rPr><w:vanish/></w:rPr><w:t>{escape(hidden)}</w:t></w:r>" if hidden is not None else ""
    return f"<w:p>{''.join(f'<w:r><w:t>{escape(run)}</w:t></w:r>' for run in runs)}{unseen}</w:p>"


def slides(*texts: str, hidden: Iterable[int] = ()) -> bytes:
    """Return a presentation with a slide for each text; `hidden` are the places of slides that are not shown."""
    parts = {"[Content_Types].xml": ""}
    for number, text in enumerate(texts, start=1):
        show = ' show="0"' if number in hidden else ""
        parts[f"ppt/slides/slide{number}.xml"] = (
            f'<p:sld xmlns:p="{_P}" xmlns:a="{_A}"{show}><a:p><a:r><a:t>{escape(text)}</a:t></a:r></a:p></p:sld>'
        )
    return packed(parts)


def workbook(sheets: Mapping[str, str], hidden: Iterable[str] = ()) -> bytes:
    """Return a workbook; each sheet is the XML of its rows."""
    states = dict.fromkeys(hidden, ' state="hidden"')
    named = "".join(
        f'<sheet name="{escape(name)}" sheetId="{at}" r:id="rId{at}"{states.get(name, "")}/>'
        for at, name in enumerate(sheets, start=1)
    )
    related = "".join(
        f'<Relationship Id="rId{at}" Type="{_R}/worksheet" Target="worksheets/sheet{at}.xml"/>'
        for at in range(1, len(sheets) + 1)
    )
    parts = {
        "[Content_Types].xml": "<Types/>",
        "_rels/.rels": f'<Relationships xmlns="{_RELATIONS}"><Relationship Id="rId1" Type="{_R}/officeDocument" '
        'Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{_S}" xmlns:r="{_R}"><sheets>{named}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_RELATIONS}">{related}</Relationships>',
        "xl/styles.xml": f'<styleSheet xmlns="{_S}">{_STYLES}</styleSheet>',
    }
    for at, rows in enumerate(sheets.values(), start=1):
        parts[f"xl/worksheets/sheet{at}.xml"] = f'<worksheet xmlns="{_S}"><sheetData>{rows}</sheetData></worksheet>'
    return packed(parts)


def row(number: int, *cells: str | float | None, style: int = 0) -> str:
    """Return the XML of a row. `style` is the style of the numbers; style 1 is a date."""
    written = []
    for column, cell in zip("ABCDEFGH", cells, strict=False):
        place = f'r="{column}{number}"'
        if isinstance(cell, str):
            written.append(f'<c {place} t="inlineStr"><is><t>{escape(cell)}</t></is></c>')
        elif cell is not None:
            written.append(f'<c {place} s="{style}"><v>{cell}</v></c>')
    return f'<row r="{number}">{"".join(written)}</row>'
