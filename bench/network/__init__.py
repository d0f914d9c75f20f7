"""Measures requests over a slow link: on kept and new connections, by congestion control, and after pauses.

    link         two network namespaces and the link between them: delay, rate, queue and loss
    exchange     a TLS server and client that exchange requests over it

Run `python -m bench.network` as root; the commands `ip` and `sysctl` have to be there.
"""
