"""The inference model of Nasr et al. (2019)."""
