"""Past one machine: pictures without number, and replicas of the server; see docs/scale.md.

sources.py     folders, patterns, lists, Parquet, tars; here or behind s3:// and gs:// → a manifest
opening.py     pictures → squares of the model's size, in tasks of their own
rows.py        what is written of each picture: the typed columns of Parquet, and JSON of them
annotator.py   a model and a prompt → rows; the same object on one machine and in each worker
output.py      the folder: manifest, parts, what is done, and other formats made of it
local.py       one machine
pipeline.py    Ray Data
"""
