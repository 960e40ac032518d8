"""Templates of sentences, vague prompts, and the prompt files of the benchmark."""

from collections.abc import Sequence

from cotir_jax.bench.composites import COMPOSITES, SINGLES, folder_name, parts_of
from cotir_jax.bench.words.table import WORDS

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
    """Returns the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def join(parts: list[str], last: str = "and") -> str:
    """Joins parts as in `a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def prompt_files(names: Sequence[str] = (*SINGLES, *COMPOSITES)) -> dict[str, list[str]]:
    """Returns the prompt files of a benchmark: name without suffix -> lines, all different.

    The vague prompts and those of the JPEG types are always among them.
    """
    files = {"gen_prompt": list(VAGUE)}
    for name in names:
        files[folder_name(name)] = _precise_lines(parts_of(name))
    for jpeg_type, words in JPEG_TYPES.items():
        lines = _precise_lines(["jpeg-compression"])
        files[jpeg_type] = [f"{line[:-1]} in this {words} file{line[-1]}" for line in lines]
    return files


def _precise_lines(parts: list[str]) -> list[str]:
    lines = []
    for number in range(25):
        # Steps 1, 2, 3, ... for successive parts, so that phrases do not pair up in lockstep.
        picks = []
        for place, part in enumerate(parts):
            requests = WORDS[part].requests
            picks.append(requests[(number * (1 + place) + number // 5 + place) % len(requests)])
        line = sentence(_FRAMES[number % len(_FRAMES)].format(request=join(picks)))
        if line not in lines:
            lines.append(line)
    return lines
