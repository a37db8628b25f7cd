"""What proves the package's promises, for its own tests and for yours.

``clock`` moves the database's time by hand. ``conformance`` is the suite that every engine must pass. ``lease_model``
and ``lease_machine`` check the lease rules against a model in plain Python, ``history`` checks recorded concurrent
runs. ``docs/testing.md`` shows each. They need what tests need: pytest and Hypothesis.
"""
