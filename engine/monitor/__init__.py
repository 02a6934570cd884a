"""Watching clusters from outside, without disturbing them: what the sidebar shows and does."""
