"""`tvp batch`: the same question about many pictures. Nothing here is imported before the command runs.

rows      the pictures: of a folder, a JSONL file or a parquet file
asking    a loaded task that answers some rows
journal   what is answered: each row once, whatever ends the process; and the file that comes of it
on_ray    the same on a Ray cluster
"""
