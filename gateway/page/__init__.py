"""The console page: a tenant's jobs, batches, callbacks and webhook endpoints in a browser.

    routes      every page with its scope; `desk` lets visitors in, and answers errors with a page
    visitors    a browser's session or certificate becomes a visitor; forms carry a token against forged requests
    rendering   templates, with every text escaped, under a strict Content-Security-Policy

The pages read the same rows as the API, by the same queries.
"""
