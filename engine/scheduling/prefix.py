"""Keys of pages: two pages with the same key hold the same keys and values, whichever request computed them.

That is so for block-causal models only. Their keys and values at a position depend on the tokens up to the end of its
block, and on where blocks end; where commits are causal, up to the position itself. So a page's key is the hash of all
tokens up to the end of the block that its last position is in, of the block length, and of the request's salt. What
else they depend on (weights, dtype) an engine has only one of. Knows one request's state, but no pages.
"""

from hashlib import blake2b

from engine.core.requests.request import Request

KEY_BYTES = 16
"""Of a hash; two of 2**32 different pages have the same one with a probability of 2**-65."""


def final_pages(request: Request, page_size: int, end: int) -> int:
    """Number of pages that depend on no position from `end` on."""
    length = request.commit_length
    if page_size % length == 0:
        return end // page_size
    pages = end // page_size
    while pages and -(-pages * page_size // length) * length > end:
        pages -= 1
    return pages


def page_keys(request: Request, page_size: int, count: int) -> list[bytes]:
    """Keys of the request's first `count` pages; all tokens that they depend on must be decoded."""
    keys, length = request.page_keys, request.commit_length
    while len(keys) < count:
        first, last = len(keys) * page_size, (len(keys) + 1) * page_size
        start, end = (-(-place // length) * length for place in (first, last))
        before = keys[-1] if keys else _hash(f"{length} {request.cache_salt}".encode())
        keys.append(_hash(before + request.ids[start:end].tobytes()))
    return keys[:count]


def _hash(content: bytes) -> bytes:
    return blake2b(content, digest_size=KEY_BYTES).digest()
