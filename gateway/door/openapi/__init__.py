"""The OpenAPI document of the door; `routes.docs` renders it as a page.

    schemas     the schemas of bodies
    document    the whole document, version 3.1, whose operations are the rows of `gateway.door.api`

Source: OpenAPI Specification 3.1.0.
"""
