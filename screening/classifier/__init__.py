"""A text classification model of the operator's, in a process of its own.

`process` is the caller's side, `child` the model's side.
"""
