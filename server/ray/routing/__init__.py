"""Which replica a request goes to, by its key and by how many each has. Asks no replica."""
