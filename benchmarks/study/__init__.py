"""The study of lenses and frames on the six zoo models: what a prompt wins back of what a camera took.

    python -m benchmarks.study run
    python -m benchmarks.study report

`run` learns a prompt for every cell (content, camera, method, source models, seed), and measures it on all six models.
It writes a line to results.jsonl and the prompt to prompts/ when a cell is done, and goes on where it stopped; several
processes share the cells (`--part 0 --parts 2`). `report` prints the tables and writes report.json.

`--split validation` measures on pictures split from train, by which settings are chosen; the test pictures are for the
settings that are reported.
"""
