"""What a browser gets: the page at `/`, on which one watches the model decode.

The page is static and holds no secret; its scripts call the API like any client.
"""
