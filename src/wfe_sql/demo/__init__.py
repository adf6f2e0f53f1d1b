"""The main job of `wfe-sql`: a small workflow host on a store, killed in the middle.

Read `host.py` to wire a host of your own; `steps.py` has what a workflow is made of, `order.py` the workflow that the
demo runs, and `run.py` the world around the host.
"""
