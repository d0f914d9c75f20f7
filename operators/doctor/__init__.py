"""Checks of a fleet and of this machine. Each finding names a fault and its fix in one line; no finding shows a secret.

    findings  a check, its findings, and the run of all checks in bounded time
    brokers   bootstrap servers, TLS, passwords, versions, advertised addresses, brokers' settings
    topics    missing topics, partitions, copies, leaders, configuration
    access    operations on topics that ACLs deny to a role
    groups    work that no process reads, and lost offsets
    clocks    clocks of this machine and of the workers against the brokers'
    fleet     versions of workers, dead letters, disabled endpoints
    files     files of secrets, and certificates

The console adds the checks that need the libraries of workers and of the gateway.
"""
