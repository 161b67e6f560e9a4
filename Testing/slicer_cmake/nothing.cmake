# Slicer writes the extension's description and package here; the stand-in has no use for either.
