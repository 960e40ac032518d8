"""Pictures: photos read and written with all they carry, arrays of pixels, overlapping tiles."""
