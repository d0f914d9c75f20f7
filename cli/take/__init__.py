"""Commands that take results: results, states, callbacks, and judging an answer."""
