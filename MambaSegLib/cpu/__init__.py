"""Whole networks on a CPU, compiled on the user's computer by numba: convolutions with normalization fused into them.

PyTorch's 3D layers write every intermediate result to fresh memory: at a fine stage, normalization and page faults cost
more than the convolution itself. Here a convolution normalizes and activates what it reads, and sums up the statistics of
what it writes, so that a block of a network goes through memory as seldom as it can.
"""
