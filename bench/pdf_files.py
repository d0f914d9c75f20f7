"""Builds PDFs for tests and benches without a library, so that the caller chooses each page's operators."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, HEIGHT = 595, 842


def line(text: str, *, at: tuple[float, float] = (72, 700), before: str = "", size: float = 12) -> str:
    """Return operators that show one line of text, after the operators `before`, such as a colour."""
    escaped = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
    return f"q {before} BT /F1 {size} Tf {at[0]} {at[1]} Td ({escaped}) Tj ET Q"


def pdf(
    pages: Sequence[str], *, info: str = "", objects: Sequence[bytes] = (), resources: str = "", tail: str = ""
) -> bytes:
    """Return a document whose pages have these content streams.

    `info` is the content of the information dictionary. `objects` are further objects, numbered from 5. `resources` is
    added to each page's resources, and `tail` to the trailer.
    """
    contents = list(dict.fromkeys(pages))
    first = 5 + len(objects)
    page_at = first + len(contents)
    kids = " ".join(f"{page_at + number} 0 R" for number in range(len(pages)))
    bodies = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} /MediaBox [0 0 {WIDTH} {HEIGHT}] >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        f"<< {info} >>".encode("latin-1"),
        *objects,
        *(stream(content.encode("latin-1")) for content in contents),
        *(_page(first + contents.index(page), resources) for page in pages),
    ]
    return _file(bodies, f"/Root 1 0 R /Info 4 0 R {tail}")


def _page(content: int, resources: str) -> bytes:
    shared = f"/Resources << /Font << /F1 3 0 R >> {resources} >>"
    return f"<< /Type /Page /Parent 2 0 R {shared} /Contents {content} 0 R >>".encode()


def stream(content: bytes, dictionary: str = "") -> bytes:
    """Return a stream object."""
    return f"<< {dictionary} /Length {len(content)} >> stream\n".encode() + content + b"\nendstream"


def _file(bodies: Sequence[bytes], trailer: str) -> bytes:
    out = bytearray(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    for number, body in enumerate(bodies, start=1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    start = len(out)
    out += f"xref\n0 {len(bodies) + 1}\n0000000000 65535 f \n".encode()
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += f"trailer << /Size {len(bodies) + 1} {trailer} >>\nstartxref\n{start}\n%%EOF\n".encode()
    return bytes(out)
