"""Follow Stoker's decisions from outside: plain nats-py and the JSON Schema, nothing of Stoker itself."""

import asyncio
import json
import sys
from pathlib import Path

import jsonschema
import nats


async def follow(url: str, schema: dict, count: int) -> None:
    connection = await nats.connect(url)
    subscription = await connection.jetstream().subscribe("stoker.v1.decision.made.*", ordered_consumer=True)
    for _ in range(count):
        decision = json.loads((await subscription.next_msg(timeout=60)).data)
        jsonschema.validate(decision, schema)
        print(decision["server"], decision["verdict"], decision["rule"], decision["gated"], flush=True)
    await connection.close()


if __name__ == "__main__":  # python follow_decisions.py nats://… decision.made.v1.json 10
    asyncio.run(follow(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), int(sys.argv[3])))
