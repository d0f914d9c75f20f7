"""Search: a query becomes sources, through services that the operator has chosen.

One file per service, each a `SearchProvider`:

    searxng     an instance of the operator's own            links
    wikipedia   the encyclopedia's own search                 links
    brave       Brave's index, with a key                     links
    pubmed      biomedical literature                         abstracts, as `pmid:…`
    arxiv       preprints                                     abstracts, as `arxiv:…`

A link is read as any other source, behind the egress guard; an abstract is a source as it stands. The services
themselves are the operator's choice, so requests to them pass the guard by: they go through a `Service`, which keeps to
its pace and tells by name what went wrong. Jobs ask `searches`, which asks each question once. `providers` finds all
that is configured, those of other packages too.
"""
