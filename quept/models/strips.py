"""Pictures of extreme shape: a strip of 8,000 x 1 pixels is a file of 100 bytes, and gigabytes once its
shorter side is scaled up to what a model reads. They are refused before anything is scaled."""

LONGEST = 100  # times its width
MOST_SCALED = 50_000_000  # pixels


def check_shape(size: tuple[int, int], shorter: float = 1) -> None:
    """ValueError for a picture of `size` (width, height) that is longer than LONGEST times its width, or that
    has more than MOST_SCALED pixels when its shorter side is scaled to `shorter` pixels."""
    ratio = max(size) / max(1, min(size))
    most = min(LONGEST, MOST_SCALED / shorter**2)
    if ratio > most:
        raise ValueError(
            f"it is a strip of {size[0]:,} x {size[1]:,} pixels; at most {most:.0f} times as long as wide is "
            "taken: cut out a part"
        )
