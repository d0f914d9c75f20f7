"""The grounded prompt before an answer; its citations and its links behind it."""
