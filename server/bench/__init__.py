"""`unmask bench`: measures decoding, a server under load, or what hardware allows. `command` is the table of them."""
