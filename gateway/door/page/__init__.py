"""The console page: Jinja2, htmx and server-sent events under a strict CSP."""
