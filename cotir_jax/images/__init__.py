"""Pictures: photos read and written with all they carry, arrays of pixels, overlapping tiles."""

import os

# libvips reads this when pyvips is imported. Without it, warnings about pictures that are still in
# memory when the interpreter exits go to standard error: by then pyvips no longer catches them.
os.environ.setdefault("VIPS_WARNING", "hidden")
