"""The fault ledger: each fault meets a fleet of real processes under a steady load, and the jobs are counted."""
