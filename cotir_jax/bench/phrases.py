"""The words of the benchmark: phrases per degradation, templates, and the prompt files.

Braces in ``FACTS`` and ``FIXES`` are filled with a step's strength and numbers
(``thoughts.numbers_of``); everything else is used as it stands.
"""

from cotir_jax.bench.composites import COMPOSITES, SINGLES, folder_name, parts_of

# What happened, with strength and the numbers that were used; the last one is the shortest,
# for chains of three and more.
FACTS: dict[str, tuple[str, ...]] = {
    "low-light": (
        "{strength} low light, gamma {gamma}, exposure cut to {exposure}",
        "{strength} underexposure at {exposure} of full light",
        "{strength} darkness at gamma {gamma} and exposure {exposure}",
        "{strength} low light (gamma {gamma})",
    ),
    "haze": (
        "{strength} haze of density {density} with airlight {airlight}",
        "a {strength} fog veil, density {density}, airlight {airlight}",
        "{strength} haze growing with distance, density {density}",
        "{strength} haze (density {density})",
    ),
    "rain-streak": (
        "{strength} rain, about {count} streaks leaning {degrees} degrees",
        "{strength} rain streaks {length} pixels long at {degrees} degrees",
        "{strength} rain ({count} streaks)",
    ),
    "snow": (
        "{strength} snow, about {count} flakes of radius {radius}",
        "{strength} snowfall with {count} flakes drifting at {degrees} degrees",
        "{strength} snow ({count} flakes)",
    ),
    "defocus-blur": (
        "{strength} defocus blur of radius {radius} pixels",
        "{strength} out-of-focus blur, disk radius {radius}",
        "{strength} defocus (radius {radius})",
    ),
    "motion-blur": (
        "{strength} {path} motion blur, {length} pixels at {degrees} degrees",
        "{strength} camera shake along a {path} path of {length} pixels",
        "{strength} motion blur ({length} pixels)",
    ),
    "low-resolution": (
        "{strength} loss of resolution by a factor of {factor}",
        "{strength} low resolution, enlarged {factor} times from fewer pixels",
        "{strength} low resolution (factor {factor})",
    ),
    "noise": (
        "{strength} {kind} noise of sigma {sigma}",
        "{strength} {kind} grain, about {sigma} of 255 levels",
        "{strength} {kind} noise (sigma {sigma})",
    ),
    "jpeg-compression": (
        "{strength} JPEG compression at quality {quality}",
        "{strength} JPEG blocks from quality {quality}",
        "{strength} JPEG (quality {quality})",
    ),
}

# What a lone degradation does to the look; composites have no room for it.
LOOKS: dict[str, tuple[str, ...]] = {
    "low-light": ("shadows sink to black", "colours and detail drown in the dark"),
    "haze": ("distant parts fade into a pale veil", "contrast falls with distance"),
    "rain-streak": ("bright lines cross the scene", "thin bright lines hide detail"),
    "snow": ("white specks cover the scene", "bright flakes hide detail"),
    "defocus-blur": ("edges spread evenly in all directions", "points turn into soft disks"),
    "motion-blur": ("edges smear along the motion", "detail survives only across the motion"),
    "low-resolution": ("fine texture is gone and edges are soft", "small detail is missing"),
    "noise": ("random grain covers flat areas", "smooth areas look speckled"),
    "jpeg-compression": ("block borders and ringing show", "flat areas break into squares"),
}

# What to do about it, with numbers: an imperative.
FIXES: dict[str, tuple[str, ...]] = {
    "low-light": (
        "brighten the dark scene by inverting gamma {gamma}",
        "raise the exposure from {exposure} to full light",
        "undo the {strength} darkness of the shadows",
    ),
    "haze": (
        "lift the {strength} haze of density {density}",
        "subtract the haze's airlight of {airlight}",
        "clear the {strength} haze towards the distance",
    ),
    "rain-streak": (
        "erase the rain streaks leaning {degrees} degrees",
        "inpaint the {strength} rain lines",
        "take out rain streaks {length} pixels long",
    ),
    "snow": (
        "inpaint what the {strength} snow hides",
        "erase snowflakes of radius {radius}",
        "clear some {count} snowflakes",
    ),
    "defocus-blur": (
        "sharpen the defocus of radius {radius}",
        "refocus the {strength} lens blur",
        "deconvolve the {radius} pixel disk",
    ),
    "motion-blur": (
        "undo the {length} pixel motion at {degrees} degrees",
        "straighten the {strength} motion smear into sharp edges",
        "deblur along the {path} camera path",
    ),
    "low-resolution": (
        "rebuild fine detail lost {factor} times over",
        "restore the resolution by a factor of {factor}",
        "sharpen the coarse {factor} times enlarged pixels",
    ),
    "noise": (
        "remove {kind} noise of sigma {sigma}",
        "denoise the {strength} grain yet keep texture",
        "smooth away the {kind} grain",
    ),
    "jpeg-compression": (
        "remove JPEG blocks of quality {quality}",
        "smooth the {strength} compression artifacts",
        "clean up {strength} JPEG block borders",
    ),
}

# The same without numbers, for the prompt files.
REQUESTS: dict[str, tuple[str, ...]] = {
    "low-light": (
        "brighten this low-light picture",
        "lift the darkness",
        "recover the underexposed scene",
        "turn up the light in the shadows",
        "make the dark parts visible",
    ),
    "haze": (
        "remove the haze",
        "clear the fog",
        "dehaze the scene",
        "restore the contrast that the mist took",
        "make the distance clear again",
    ),
    "rain-streak": (
        "remove the rain streaks",
        "take the rain out",
        "erase the falling rain",
        "clean away the bright rain lines",
        "derain the scene",
    ),
    "snow": (
        "remove the snowflakes",
        "take the falling snow out",
        "erase the snow",
        "clean away the white flakes",
        "desnow the scene",
    ),
    "defocus-blur": (
        "correct the defocus blur",
        "bring the picture into focus",
        "sharpen the lens blur",
        "undo the out-of-focus softness",
        "refocus the scene",
    ),
    "motion-blur": (
        "remove the motion blur",
        "undo the camera shake",
        "sharpen the motion smear",
        "freeze the moving camera",
        "deblur the movement",
    ),
    "low-resolution": (
        "increase the resolution",
        "add the missing fine detail",
        "sharpen the coarse pixels",
        "super-resolve the picture",
        "restore the lost resolution",
    ),
    "noise": (
        "remove the noise",
        "denoise the picture",
        "clean away the grain",
        "smooth the sensor noise yet keep texture",
        "suppress the speckle",
    ),
    "jpeg-compression": (
        "remove the JPEG artifacts",
        "clean up the compression blocks",
        "smooth the blocking",
        "undo the JPEG compression",
        "remove ringing and block borders",
    ),
}

VAGUE: tuple[str, ...] = (
    "Restore this picture.",
    "Make this photo look better.",
    "Improve the quality of this image.",
    "Enhance this picture.",
    "Fix what is wrong with this photo.",
    "Give me a clean version of this image.",
    "Please clean up this picture.",
    "Repair this damaged photo.",
    "I want this photo to look clear.",
    "Can you make this image clearer?",
    "Turn this into a high-quality picture.",
    "Remove whatever spoils this photo.",
    "Bring out the detail in this image.",
    "Recover the original scene.",
    "This picture looks bad, please improve it.",
    "Show the scene as it really was.",
    "Undo the damage in this picture.",
    "Make the picture clean and natural.",
    "Improve the visibility of this scene.",
    "Return this photo to good condition.",
    "Please restore this low-quality image.",
    "What would this look like undamaged?",
    "Make it sharp, clean and well lit.",
    "Help me rescue this photo.",
    "Polish this image, please.",
    "The quality is poor, enhance it.",
    "Produce the best version of this photo.",
    "Correct all defects in this picture.",
    "I would like a better-looking image.",
    "Reconstruct the clean picture.",
)

SCENES: tuple[str, ...] = (
    "a {brightness} scene with {contrast} contrast, {colour} and {detail}, {layout}",
    "{brightness} picture, {layout}, {contrast} contrast, {colour}, {detail}",
    "the photo is {brightness} and {layout}, with {colour}, {detail} and {contrast} contrast",
    "{colour} in a {brightness} photo with {detail}, {layout}, contrast {contrast}",
    "a {contrast}-contrast, {brightness} view, {layout}, showing {detail} and {colour}",
    "a {brightness} photograph of {contrast} contrast, {layout}; {detail}, {colour}",
)

ANSWERS: tuple[str, ...] = (
    "a clean picture of the same scene.",
    "the restored photo.",
    "a clear picture, true to the scene.",
    "the scene without the damage.",
)

JPEG_TYPES: dict[str, str] = {
    "jpeg-light": "lightly compressed",
    "jpeg-medium": "clearly compressed",
    "jpeg-heavy": "heavily compressed",
}

_FRAMES: tuple[str, ...] = (
    "{request}.",
    "Please {request}.",
    "Can you {request}?",
    "I want you to {request}.",
    "Restore this photo: {request}.",
)


def sentence(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def join(parts: list[str], last: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def prompt_files() -> dict[str, list[str]]:
    """Every prompt file of a benchmark: name without suffix -> its lines, all different."""
    files = {"gen_prompt": list(VAGUE)}
    for name in (*SINGLES, *COMPOSITES):
        files[folder_name(name)] = _precise_lines(parts_of(name))
    for jpeg_type, words in JPEG_TYPES.items():
        lines = _precise_lines(["jpeg-compression"])
        files[jpeg_type] = [f"{line[:-1]} in this {words} file{line[-1]}" for line in lines]
    return files


def _precise_lines(parts: list[str]) -> list[str]:
    lines = []
    for number in range(25):
        # Steps 1, 2, 3, ... for successive parts, so that phrases do not pair up in lockstep.
        picks = [
            REQUESTS[part][(number * (1 + place) + number // 5 + place) % len(REQUESTS[part])]
            for place, part in enumerate(parts)
        ]
        line = sentence(_FRAMES[number % len(_FRAMES)].format(request=join(picks)))
        if line not in lines:
            lines.append(line)
    return lines
