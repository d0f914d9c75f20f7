"""The evaluation set of `python -m bench.passages`: pages of many makes, and questions with the passage that answers.

    questions.toml   which pages there are, how each is served, and what is asked of it
    pages/           the pages, in UTF-8 as they are written; the site serves them in the charset that they have there
    pages.py         both of them as values
    typeset.py       a text as a PDF
    site.py          the pages over HTTP

Every name and every fact is invented, so that nothing is copied and no model knows an answer.
"""
