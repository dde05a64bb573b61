"""Who is asked: a model in this process, or a server. Judges no answer."""
