"""Follow Stoker's decisions from outside: plain nats-py and the JSON Schema, nothing of Stoker itself.

On a secured bus as the user `reader`: with its password in the URL, nats://reader:…@…, or with the file of its nkey's
seed as the last argument.
"""

import asyncio
import json
import sys
from pathlib import Path

import jsonschema
import nats


async def follow(url: str, schema: dict, count: int, seed: str | None = None) -> None:
    connection = await nats.connect(url, nkeys_seed=seed)
    subscription = await connection.subscribe("stoker.v1.decision.made.*")
    for _ in range(count):
        decision = json.loads((await subscription.next_msg(timeout=60)).data)
        jsonschema.validate(decision, schema)
        print(decision["server"], decision["verdict"], decision["rule"], decision["gated"], flush=True)
    await connection.close()


if __name__ == "__main__":  # python follow_decisions.py nats://… decision.made.v1.json 10 [reader.nk]
    asyncio.run(
        follow(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), int(sys.argv[3]), *sys.argv[4:])
    )
