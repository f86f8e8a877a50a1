"""What `scripts/schemathesis` changes of generated requests."""

import schemathesis


@schemathesis.hook
def before_call(context, case, kwargs):
    """A worker may ask to be kept waiting for half a minute. Who generates requests has no use for that."""
    body = case.body
    if isinstance(body, dict) and type(body.get("wait_ms")) is int and 0 < body["wait_ms"] <= 30_000:
        body["wait_ms"] = 1
