"""Origins as browsers send them: scheme, host and port, in lower case, without a slash."""

import httpx

ANY = "*"
NULL = "null"
"""What a browser sends for a page that came from a file."""


def origin(text: str) -> str:
    """The origin that `text` means: `HTTPS://A.example:443/` is `https://a.example`.

    Raises ValueError for what no browser would send.
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
