"""MRD (ISMRMRD v1 streaming): the image-to-image server `udean-serve`."""
