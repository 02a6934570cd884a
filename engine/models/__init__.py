"""Models: making, loading, splitting and showing them."""
