"""What the MambaSegmentation module of 3D Slicer is made of, but for its window."""
