"""Planning: does a model fit on some Macs, and how fast will it be, before anything is loaded."""
