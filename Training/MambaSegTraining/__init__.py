"""Reproducible training of the networks in MambaSegLib: data set to cross-validated bundle."""
