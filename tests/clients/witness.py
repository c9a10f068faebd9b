"""What the tests ask of an agent besides its job: a record of what reached it, and steps in lockstep with the other
side. Nothing here knows of a mesh; without SEEN and STEPS both do nothing.

A server that streams takes a step before each event and a client marks it when that event has arrived. Where anything
between them holds events back, the server waits in vain, the stream ends early and the client fails.
"""

import asyncio
import json
import os
import pathlib
import sys
import time

# A step that takes longer is held back by somebody: on one machine it takes milliseconds.
STEP_DEADLINE = 20.0
STEP_POLL = 0.005

# What the agents on web frameworks serve.
PAGE = b"0123456789" * 1000


def seen(what, **more):
    """Records that a call reached this agent."""
    path = os.environ.get("SEEN")
    if path:
        with open(path, "a", encoding="utf-8") as f:
            f.write(json.dumps({"seen": what, **more}) + "\n")


def _mark(stream, step):
    steps = os.environ.get("STEPS")
    return pathlib.Path(steps) / f"{stream}.{step}" if steps else None


def heard(stream, step):
    """The client's side: event `step` of `stream` has arrived."""
    mark = _mark(stream, step)
    if mark:
        mark.touch()


async def until_heard(stream, step):
    """The server's side: waits until the client has event `step`."""
    mark = _mark(stream, step)
    deadline = time.monotonic() + STEP_DEADLINE
    while mark and not mark.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody heard event {step} of {stream}: something holds events back")
        await asyncio.sleep(STEP_POLL)


def report(**observed):
    """A client's only output: one JSON line of what it observed."""
    print(json.dumps(observed), flush=True)


def port():
    """Where to serve: the argument --port N, else PORT."""
    args = sys.argv[1:]
    return int(args[args.index("--port") + 1] if "--port" in args else os.environ["PORT"])


def page_file():
    """A file that holds PAGE, for servers that know ranges of files only: in the directory that the agent was given."""
    path = pathlib.Path("page.txt").resolve()
    path.write_bytes(PAGE)
    return path
