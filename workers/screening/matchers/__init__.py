"""Matchers: each finds one kind of text, in time linear in the text's length."""
