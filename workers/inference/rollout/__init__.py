"""The gray release of a model, in workers: jobs to the candidate, copies of jobs, comparisons and decisions.

`rollouts` knows the fleet's rollouts and routes jobs by them. `sampling` copies jobs for the shadow worker, whose
`candidate` answers the copies and compares the answers by `difference`. `steering` turns all comparisons into the next
step.
"""
