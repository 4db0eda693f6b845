"""The one function that turns image bytes into upright RGB pixels, and the one resize.

Used by ingest, training, evaluation and serving, so that the same bytes always become the same
pixels. Pillow alone, without torch: it runs in the limited ingest child and in the api as well
(decision 0001). What never happens silently: 16-bit images are scaled instead of clipped, CMYK is
converted, EXIF orientation is applied, transparency is put on white, the first frame is taken.
"""
