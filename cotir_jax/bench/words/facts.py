"""Phrases that say what happened to a picture, and how it looks.

Braces are filled with a step's strength and numbers (``thoughts.numbers_of``).
"""

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
    "shadow": (
        "{strength} shadow of {caster} over {cover}% of the scene, {ambient}% of the light left",
        "{strength} cast shadow leaving {ambient}% of the light",
        "{strength} shadow ({ambient}% light left)",
    ),
    "underwater": (
        "{strength} colour cast of Jerlov {water} water, up to {distance} metres of it",
        "{strength} underwater attenuation over {distance} metres, {below} metres deep",
        "{strength} water cast ({distance} metres)",
    ),
    "non-homogeneous-haze": (
        "{strength} patchy haze of mean density {density} with airlight {airlight}",
        "{strength} drifting smoke, density {density}, patches of {patch} pixels",
        "{strength} patchy haze (density {density})",
    ),
    "specular-reflection": (
        "{strength} specular reflection with {mirrors}",
        "{strength} glare with {mirrors}",
        "{strength} reflection ({mirrors})",
    ),
    "raindrop": (
        "{strength} raindrops on the glass, about {count} of radius {radius}",
        "{strength} cover of some {count} drops, each showing the scene {zoom} times smaller",
        "{strength} raindrops ({count} drops)",
    ),
    "flare": (
        "{strength} lens flare from a light at the {place}, {streaks} streaks, {ghosts} ghosts",
        "{strength} flare of gain {gain} around a light at the {place}",
        "{strength} flare (gain {gain})",
    ),
    "over-exposure": (
        "{strength} over-exposure by {stops} stops",
        "{strength} excess of light, {stops} stops too much",
        "{strength} over-exposure ({stops} stops)",
    ),
    "lost_color": (
        "{strength} loss of colour, {kept}% of it left",
        "{strength} fading to grey with {kept}% of the colour kept",
        "{strength} colour loss ({kept}% left)",
    ),
    "smartphone-to-dslr": (
        "{strength} phone look, saturation {saturation}, sharpening {halo}, JPEG quality {quality}",
        "{strength} phone processing with contrast {contrast} and saturation {saturation}",
        "{strength} phone processing (saturation {saturation})",
    ),
    "watermark": (
        '{strength} watermark "{text}" as {layout}, {opacity}% opaque',
        '{strength} overlay of "{text}" at {opacity}% opacity',
        "{strength} watermark ({opacity}% opaque)",
    ),
}

# Where rain or snow came from a mask in a file, whose streaks or flakes nobody counted.
FACTS_OF_MASKS: dict[str, tuple[str, ...]] = {
    "rain-streak": (
        "{strength} rain streaks of opacity {opacity}",
        "{strength} rain, streaks adding up to {opacity} of white",
        "{strength} rain (opacity {opacity})",
    ),
    "snow": (
        "{strength} snow with flakes of opacity {opacity}",
        "{strength} snowfall, flakes {opacity} opaque",
        "{strength} snow (opacity {opacity})",
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
    "shadow": ("part of the scene lies in the dark", "a dark, bluish area hides detail"),
    "underwater": ("warm colours fade with distance", "water tints and veils the scene"),
    "non-homogeneous-haze": (
        "some parts vanish in smoke, others stay clear",
        "clouds of mist hide patches",
    ),
    "specular-reflection": ("reflected light hides the surface", "stray light lies over detail"),
    "raindrop": ("round drops distort what is behind them", "drops show the scene upside down"),
    "flare": ("stray light washes out contrast", "glow and streaks cover detail"),
    "over-exposure": ("bright parts burn out to white", "highlights lose all detail"),
    "lost_color": ("hues are pale or gone", "only brightness tells things apart"),
    "smartphone-to-dslr": (
        "fine texture is smeared and edges have halos",
        "tones are harsh and colours flat",
    ),
    "watermark": ("printed marks cover the scene", "letters and lines hide detail"),
}
