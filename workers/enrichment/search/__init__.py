"""Search: a query becomes sources, through services that the operator has chosen.

The services, each with a `SearchProvider`:

    json_services  SearXNG, Brave and Wikipedia, as `services.toml` describes them   links
    pubmed         biomedical literature                                             abstracts, as `pmid:…`
    arxiv          preprints                                                         abstracts, as `arxiv:…`

The kinds of an operator's own source, each with a subclass of `inside.InsideSource`:

    inside      the TOML files that describe such sources, and an HTTP API with answers in JSON, such as a FHIR server
    sql         a database, read by one statement
    mcp_tool    a tool of an MCP server

A link is read like any other source, behind the egress guard; an abstract is itself the source. The operator chooses
the services, so requests to them bypass the guard. A `Service` paces these requests, and raises an `Unreadable` with a
reason for each failure. `searches` sends equal queries of several jobs once. `providers` finds all configured
providers, including those of other packages.
"""
