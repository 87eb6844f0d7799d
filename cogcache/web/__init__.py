"""Pages over one cache: clips, captions beside the pictures, failures, runs and figures.

Needs the extra ``web``. Nothing is fetched from the net, and nothing written but
digests of videos that the catalog had forgotten. What is not
covered: encryption; put a reverse proxy that speaks HTTPS before it on a network that others use.
"""
