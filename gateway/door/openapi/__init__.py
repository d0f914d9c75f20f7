"""The OpenAPI document of the door; `routes.docs` renders it as a page.

    operation   an operation of the API, as data
    jobs        operations on single jobs: jobs, responses, completions, events, models
    files       operations on files and batches
    kinds       operations and schemas of the endpoints for texts
    schemas     the schemas of bodies
    document    the whole document, version 3.1, with the operations on webhook endpoints and those of administrators

Source: OpenAPI Specification 3.1.0.
"""
