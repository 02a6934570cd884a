"""Serve a model to other programs, over HTTP as OpenAI's API does it, from all ranks in step.

`loop` runs on every rank: rank 0 says in each round what is begun and what is given up, and all of
them compute the same steps. `batch` is what they compute, `room` the memory that they have for it.
`front` is the server, in a thread of rank 0: who waits for what. `http` has its endpoints,
`protocol` and `text` are what they speak.
`serving` is the side of the notebook: it starts the loop as a cell, and again after a failure.
"""
