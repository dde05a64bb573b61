"""Serving by replicas on a Ray cluster: each has the whole app around an engine, and an ingress sends requests to them.

`relay`, `exchange`, `scaling`, and of `routing` all but `router`, know nothing of Ray. The others import it, and are
imported only where somebody asks for it (`unmask serve --ray`, or a Serve config that names `server.ray.application`).
"""
