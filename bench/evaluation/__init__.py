"""The evaluation set of `python -m bench.passages`: pages of many kinds, and questions with their passages.

    questions.toml   the pages, how each is served, and the questions about it
        pages/           the pages, stored in UTF-8; the site serves each in its charset from `questions.toml`
        pages.py         the pages and questions as Python objects
        typeset.py       makes a PDF of a text
    site.py          the pages over HTTP

All names and facts are invented, so that nothing is copied and no model knows an answer.
"""
