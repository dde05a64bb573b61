"""Origins as browsers send them: scheme, host and port, in lower case, without a slash."""

import httpx

ANY = "*"
NULL = "null"
"""What a browser sends for a page that was opened from a file."""


def origin(text: str) -> str:
    """The normalized form of the origin: `HTTPS://A.example:443/` becomes `https://a.example`.

    Raises ValueError for text that is not an origin.
    """
    if text in (ANY, NULL):
        return text
    try:
        url = httpx.URL(text.lower())
    except httpx.InvalidURL:
        url = httpx.URL()
    has_more = url.userinfo or url.raw_path != b"/" or url.fragment
    if not (url.scheme and url.host) or set("*%") & set(url.host) or has_more:
        raise ValueError(f"must hold origins as https://example.org, or {ANY} alone for all")
    return f"{url.scheme}://{url.netloc.decode()}"
