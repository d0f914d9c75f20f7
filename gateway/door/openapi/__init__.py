"""The OpenAPI document of the door, and its rendering as a page.

    operation   an operation of the API, as data
    jobs        operations on single jobs: jobs, responses, completions, events, models
    files       operations on files and batches
    webhooks    operations on webhook endpoints
    admin       operations of administrators
    schemas     the schemas of bodies
    document    the whole document, version 3.1
    page        the document as HTML

Source: OpenAPI Specification 3.1.0.
"""
