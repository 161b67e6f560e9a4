"""A browser view of images and segmentations outside 3D Slicer, made of Slicer's own views (trame-slicer)."""
