"""Requests over a slow link: connections that are kept or new, congestion controls, pauses.

    link         two network namespaces and the link between them: delay, rate, queue and loss
    exchange     a TLS server and client that exchange requests over it

Run `python -m bench.network` as root; the commands `ip` and `sysctl` have to be there.
"""
