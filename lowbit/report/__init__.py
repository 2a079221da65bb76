"""Results made visible: a text table, the frontier and the curves, and one page that holds it all.

The report reads JSON files and arrays. It knows no model and loads no jax.
"""
