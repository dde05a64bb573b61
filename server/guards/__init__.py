"""Protection against untrusted clients: keys, hosts, bounds on connections, headers, bodies and time.

Sees errors and the engine's public interface. Knows no route and no model. A new bound is a middleware here, which
`server.http.app` puts around the routes.
"""
