"""Follow Stoker's decisions from outside: plain nats-py and the JSON Schema, nothing of Stoker itself."""

import asyncio
import json
import sys

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
    with open(sys.argv[2]) as file:
        asyncio.run(follow(sys.argv[1], json.load(file), int(sys.argv[3])))
