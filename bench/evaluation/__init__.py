"""The evaluation set of `python -m bench.passages`: pages of many makes, and questions with the passage that answers.

    questions.toml   the pages, how each is served, and the questions about it
    pages/           the pages, written in UTF-8; the site serves each in its charset from `questions.toml`
    pages.py         both of them as values
    typeset.py       a text as a PDF
    site.py          the pages over HTTP

Every name and every fact is invented, so that nothing is copied and no model knows an answer.
"""
