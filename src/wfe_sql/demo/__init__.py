"""The demo: small workflow hosts that share a store, and one of them is killed.

Read `host.py` to write your own host; `steps.py` has the parts of a workflow, `order.py` the workflow of the demo, and
`run.py` the world around the hosts.
"""
