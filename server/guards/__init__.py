"""What a server owes to strangers: keys, hosts, bounds on connections, headers, bodies and time.

Sees errors and the engine's face. Knows no route and no model. A new bound is a middleware here, put around the routes
in `server.http.app`.
"""
