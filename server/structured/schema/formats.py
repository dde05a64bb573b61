"""Regexes of the formats that are enforced. Each is a part of what the format allows; other formats are annotations."""

_HEX = "[0-9a-fA-F]"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LONG_MONTH = "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
_SHORT_MONTH = "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
_FEBRUARY = "02-(?:0[1-9]|1[0-9]|2[0-8])"
_DATE = f"[0-9]{{3}}[1-9]-(?:{_LONG_MONTH}|{_SHORT_MONTH}|{_FEBRUARY})"
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](?:\.[0-9]{{1,6}})?(?:Z|[+-]{_CLOCK})"
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HOURS = "T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_DAYS = "(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": f"P(?:[0-9]+W|{_DAYS}(?:{_HOURS})?|{_HOURS})",
    "uuid": f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
    "ipv4": rf"(?:{_BYTE}\.){{3}}{_BYTE}",
    "ipv6": f"(?:{_HEX}{{1,4}}:){{7}}{_HEX}{{1,4}}",
    "hostname": rf"{_LABEL}(?:\.{_LABEL}){{0,2}}\.[a-zA-Z]{{2,12}}|[a-zA-Z]{{1,12}}",
    "email": (
        r"[a-zA-Z0-9_%+-]{1,19}(?:\.[a-zA-Z0-9_%+-]{1,14}){0,3}@"  # 64 characters at most
        r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,30}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,30}[a-zA-Z0-9])?){0,2}"
        r"\.[a-zA-Z]{2,12}"
    ),
    "uri": (
        # A URI's host has no bound, and schemas with dozens of URIs have no states for one.
        r"https?://[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*"
        r"(?::[0-9]{1,4})?(?:/(?:[a-zA-Z0-9._~-]|%[0-9a-fA-F]{2})*)*"
        r"(?:\?(?:[a-zA-Z0-9._~&=+-]|%[0-9a-fA-F]{2})*)?"
    ),
}
