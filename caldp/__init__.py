"""CALDP: calibrate Hubble Space Telescope data, from one dataset to the whole archive.

The package is light to import: numpy, astropy, crds and matplotlib are loaded inside the functions that need
them.  ``caldp.process.process`` is the place to start reading.
"""

__version__ = "0.1.0"
