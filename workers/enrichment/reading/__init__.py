"""From a page's bytes to the text that its readers see. Runs in a member of the pool."""
