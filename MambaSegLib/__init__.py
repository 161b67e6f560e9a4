"""Mamba U-Nets for 3D medical image segmentation: arrays in, arrays out.

Importing this package needs NumPy only; PyTorch, SimpleITK and numba load in the functions that use them, so that a
3D Slicer without PyTorch can still open the module and list its models.
"""

__version__ = "0.1.0"
