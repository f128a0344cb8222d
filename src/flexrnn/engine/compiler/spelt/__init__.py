"""Spellings: what a person writes that torch would turn into what no longer says what was meant."""
