"""The cluster itself: hostfile, backends, launch, world, cells, models. No UI, no server."""
