"""`unmask bench`: measures decoding or a server under load, or predicts what hardware allows. `command` chooses."""
