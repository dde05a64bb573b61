"""Human-readable sizes: about three digits, with a suitable unit."""


def parameters(count: int) -> str:
    """A model's number of parameters: `8.02 B`, `31.0 M`, `221 K`."""
    if count < 10**6:
        return f"{count / 10**3:.0f} K"
    return f"{count / 10**6:.1f} M" if count < 10**9 else f"{count / 10**9:.2f} B"


def size(num_bytes: float) -> str:
    """A size of memory: `14.2 GiB`, `3.81 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.3g} {unit}" if num_bytes < 100 else f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"
