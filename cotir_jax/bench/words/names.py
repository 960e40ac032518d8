"""Names of degradations in plain words.

A degradation has one name everywhere: its folder's in CoTIR-Bench, as in `low-light` and
`lost_color`, joined by `+` in composites. What people read shows the plain words instead.
"""

PLAIN_NAMES: dict[str, str] = {
    "low-light": "low light",
    "shadow": "shadow",
    "underwater": "underwater",
    "haze": "haze",
    "non-homogeneous-haze": "patchy haze",
    "rain-streak": "rain",
    "snow": "snow",
    "specular-reflection": "reflection",
    "raindrop": "raindrops",
    "flare": "lens flare",
    "defocus-blur": "defocus blur",
    "motion-blur": "motion blur",
    "over-exposure": "over-exposure",
    "low-resolution": "low resolution",
    "noise": "noise",
    "lost_color": "lost colour",
    "smartphone-to-dslr": "phone processing",
    "watermark": "watermark",
    "jpeg-compression": "JPEG artefacts",
}


def plain_name(name: str) -> str:
    """Turns `low-light+noise` into `low light + noise`; unknown names stay as they are."""
    return " + ".join(PLAIN_NAMES.get(part, part) for part in name.split("+"))
