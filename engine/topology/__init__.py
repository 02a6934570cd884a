"""Who is linked to whom, by what, and how fast that is."""
