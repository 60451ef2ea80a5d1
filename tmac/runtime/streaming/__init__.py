"""Models larger than memory: the packed cache file, what of it is resident, and what is read layer by layer."""
