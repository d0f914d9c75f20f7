"""The console page: a tenant's jobs, batches, callbacks and webhook endpoints in a browser.

    views       every page with its scope, and the API's page at `/docs`
    desk        a browser's session or certificate becomes a visitor; forms carry a token against forged requests
    rendering   templates, with every text escaped, under a strict Content-Security-Policy

The pages read the same rows as the API, by the same queries.
"""
