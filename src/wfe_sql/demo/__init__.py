"""The main job of `wfe-sql`: small workflow hosts that share a store, one of them killed.

Read `host.py` to wire a host of your own; `steps.py` has what a workflow is made of, `order.py` the workflow that the
demo runs, and `run.py` the world around the host.
"""
