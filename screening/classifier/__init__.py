"""A text classification model of the operator's, in a process of its own: `process` is our side, `child` its side."""
