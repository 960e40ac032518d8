"""Phrases that say how to mend a picture, with numbers for plans and without for prompts.

Braces are filled with a step's strength and numbers (``thoughts.numbers_of``).
"""

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
    "shadow": (
        "relight the shadowed {cover}% of the scene",
        "raise the {ambient}% of light left in the shadow",
        "remove the {strength} shadow of {caster}",
    ),
    "underwater": (
        "restore the red that {distance} metres of water absorb",
        "remove the {strength} colour cast of {water} water",
        "undo the water's veil over {distance} metres",
    ),
    "non-homogeneous-haze": (
        "clear the {strength} patches of haze",
        "lift the uneven haze of density {density}",
        "subtract the drifting haze's airlight of {airlight}",
    ),
    "specular-reflection": (
        "remove {mirrors}",
        "recover the surface behind the {strength} reflection",
        "separate the {strength} glare from the scene",
    ),
    "raindrop": (
        "inpaint some {count} raindrops",
        "remove drops of radius {radius} from the glass",
        "rebuild the scene behind the {strength} drops",
    ),
    "flare": (
        "remove the {strength} flare at the {place}",
        "subtract {streaks} streaks and {ghosts} ghosts of the flare",
        "restore the contrast that the flare took",
    ),
    "over-exposure": (
        "lower the exposure by {stops} stops",
        "rebuild the burnt-out highlights",
        "recover detail lost to {strength} over-exposure",
    ),
    "lost_color": (
        "bring back natural colours",
        "recolour the picture from {kept}% of its colour",
        "undo the {strength} loss of colour",
    ),
    "smartphone-to-dslr": (
        "give the phone photo a camera's natural tones",
        "raise the saturation from {saturation} and soften the halos",
        "undo the {strength} phone processing",
    ),
    "watermark": (
        'erase the watermark "{text}"',
        "inpaint the {opacity}% opaque marks",
        "remove the {strength} watermark",
    ),
}

# For rain and snow from masks, as in ``phrases_facts.FACTS_OF_MASKS``.
FIXES_OF_MASKS: dict[str, tuple[str, ...]] = {
    "rain-streak": ("erase the {strength} rain streaks", "inpaint the {strength} rain lines"),
    "snow": ("inpaint what the {strength} snow hides", "clear the {strength} snowflakes"),
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
    "shadow": (
        "remove the shadow",
        "brighten the shadowed area",
        "even out the light",
        "take the cast shadow away",
        "show what the shadow hides",
    ),
    "underwater": (
        "correct the underwater colours",
        "remove the water's colour cast",
        "clear the water",
        "bring the warm colours back",
        "make this look as if taken in air",
    ),
    "non-homogeneous-haze": (
        "remove the patchy haze",
        "clear the drifting smoke",
        "dehaze the uneven fog",
        "lift the patches of mist",
        "show what the smoke hides",
    ),
    "specular-reflection": (
        "remove the reflections",
        "take the glare off",
        "clear the reflected light",
        "show the surface behind the highlights",
        "suppress the specular reflection",
    ),
    "raindrop": (
        "remove the raindrops",
        "clean the drops off the glass",
        "erase the water drops",
        "show the scene behind the drops",
        "wipe the wet pane",
    ),
    "flare": (
        "remove the lens flare",
        "take the glow and streaks away",
        "erase the flare and its ghosts",
        "clean away the stray light",
        "restore the contrast under the flare",
    ),
    "over-exposure": (
        "correct the over-exposure",
        "darken the overexposed picture",
        "recover the burnt-out highlights",
        "bring the exposure down",
        "restore the blown-out areas",
    ),
    "lost_color": (
        "bring back the lost colour",
        "colourise the picture",
        "restore natural colours",
        "recolour this faded photo",
        "give the grey picture its colours",
    ),
    "smartphone-to-dslr": (
        "make this phone photo look like a camera's",
        "turn the smartphone picture into DSLR quality",
        "give the phone photo natural tones",
        "enhance this mobile phone shot",
        "undo the phone's processing",
    ),
    "watermark": (
        "remove the watermark",
        "erase the printed text",
        "take the overlay off",
        "inpaint the watermark",
        "clean away letters and logos",
    ),
}
