"""How previews are drawn: from open FITS files to pictures.  Names, files and workers: ``caldp.create_preview``."""
