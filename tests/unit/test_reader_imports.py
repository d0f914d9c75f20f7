"""A reader imports everything before its confinement, after which it cannot read modules from disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import cast, get_args

import pytest

from workers.enrichment.evidence import Extractor

PAGES = Path(__file__).parents[2] / "bench" / "evaluation" / "pages"
ALPHABETS = {
    "koi8-r": "Новый мост открыли весной. ",
    "shift_jis": "これは橋についてのページです。",
    "euc-kr": "이것은 다리에 관한 페이지입니다. ",
    "gb18030": "这是关于桥的页面。",
    "utf-16": "The bridge opened in 1987. ",
}
PARTICULARS = b"""<html><head><link rel=canonical href="https://b\xc3\xbccher.example/\xc3\xa4">
<script type="application/ld+json">{"@type":"Article","datePublished":"2020-05-17T10:00:00+02:00"}</script></head>
<body><p>The bridge opened in 1987.</p></body></html>"""
QUESTIONS = (
    "When did the bridge open?",
    "Wann wurde die Brücke eröffnet?",
    "橋はいつ開通しましたか",
    "Когда открыли мост?",
)


@pytest.mark.parametrize("extractor", get_args(Extractor))
def test_reading_ranking_and_judging_pages_imports_nothing(extractor: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, __file__, extractor], capture_output=True, text=True, check=True, env=environment
    )
    assert json.loads(done.stdout) == []


def work(extractor: Extractor) -> None:
    """Do the work of the pool's members, on pages of many formats, scripts and charsets."""
    from bench.pdf_files import line, pdf
    from tests.unit.office_files import document, paragraph, row, workbook
    from workers.enrichment.processes import member

    def extract(body: bytes, media_type: str, charset: str | None) -> str:
        return str(member.extract_page(body, media_type, charset, "https://bücher.example/", extractor)["text"])

    for path in sorted(path for path in PAGES.rglob("*") if path.is_file())[:8]:
        extract(path.read_bytes(), "text/html", None)
    extract(PARTICULARS, "text/html", "nonsense")
    extract(pdf([line("The bridge opened in 1987.")]), "application/pdf", None)
    extract(b'{"text": "The bridge opened in 1987."}', "application/json", None)
    extract(document(paragraph("The bridge opened in 1987.")), "", None)
    extract(workbook({"Bridges": row(1, "Vesla", 31901, style=1)}), "", None)
    feed = (
        b"<rss><item><pubDate>Mon, 04 May 1987 10:00:00 GMT</pubDate><description>&lt;p&gt;A</description></item></rss>"
    )
    extract(feed, "text/xml", "utf-8")
    for charset, text in ALPHABETS.items():
        for declared in (charset, None):
            extract((text * 40).encode(charset), "text/html", declared)
    documents = [["a", text * 40] for text in ALPHABETS.values()]
    for question in QUESTIONS:
        member.rank_passages(
            json.dumps({"question": question, "documents": documents}).encode(), 2000, None, 500, 400, 8
        )
    robots = b"User-agent: *\nDisallow: /x\nCrawl-delay: 2\nVisit-time: 0600-0845\nSitemap: https://a.example/"
    member.judge_robots(robots, "https://bücher.example/x", "Postback/1.0")


def main() -> None:
    """Print the modules that the work imported."""
    from workers.enrichment.processes import member

    extractor = cast("Extractor", sys.argv[1])
    member.import_all(extractor)
    before = set(sys.modules)
    import tests.unit.office_files  # noqa: F401 - not part of the reader

    work(extractor)
    json.dump(sorted(name for name in set(sys.modules) - before if not name.startswith(("bench", "tests"))), sys.stdout)


if __name__ == "__main__":
    main()
