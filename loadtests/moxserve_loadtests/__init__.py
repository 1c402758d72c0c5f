"""Load tests with locust, over gRPC and REST.

Where to look: `plan.py` (what is sent, prepared before the load begins), `users.py` (the locust users),
`locustfile.py` (for `locust -f`), `generator.py` (the process that `moxserve loadtest` starts), `results.py` (figures),
`limits.py` (the grammar of `--fail-if`), `report.py` (the HTML page).

locust patches the standard library when it is imported, so only `users.py`, `locustfile.py` and `generator.py` import
it, and `moxserve loadtest` runs them in a process of their own.
"""
