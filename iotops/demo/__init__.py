"""A hub of its own that loses its disk and comes back: the main job, shown and judged.

The product's part is done by the product's own actions. What was there before the disaster and
what is there afterwards is seen by clients of the demo's own, which share no code with the
captures. Not here: the command and its output (`cli/demo.py`).
"""
