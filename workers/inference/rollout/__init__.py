"""The workers' part in the gray release of a model: they route and copy jobs, compare answers, and decide.

`rollouts` knows the fleet's rollouts and routes jobs by them. `sampling` copies jobs for the `shadow` worker, which
answers the copies and compares the answers by `difference`. `steering` turns all comparisons into the next step.
"""
