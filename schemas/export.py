"""Write what derives from the contracts: JSON Schema, the AsyncAPI document, the README's topics.

Everything written here is committed, and `drift` says what no longer matches.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from schemas.request import RequestRefused
from schemas.topics import ROOT, TOPICS, VERBS, Delivery, Topic

FOLDER = Path(__file__).parent
README = FOLDER.parent / "README.md"
_BEGIN, _END = "<!-- topics: generated -->", "<!-- topics: end -->"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_ID = "urn:stoker:schema"
_CE_HEADERS = {
    "ce-specversion": ("CloudEvents version, always 1.0", True),
    "ce-id": ("deterministic id: a repeated fact has the same", True),
    "ce-source": ("who published it", True),
    "ce-type": ("the topic with its major version", True),
    "ce-time": ("when it was published, RFC 3339, in control time", True),
    "ce-correlationid": ("the control cycle", False),
    "ce-causationid": ("the message that led to it", False),
    "ce-expirytime": ("when it must no longer be acted upon", False),
    "ce-traceparent": ("W3C trace context; a control cycle is one trace", False),
}


def files() -> dict[Path, str]:
    """Every derived file with its content."""
    written = {FOLDER / "json" / f"{topic.name}.v1.json": _json(json_schema(topic)) for topic in TOPICS}
    for model in _request_models():
        written[FOLDER / "json" / "requests" / f"{model.__name__}.v1.json"] = _json(_schema_of(model))
    written[FOLDER / "asyncapi.yaml"] = yaml.safe_dump(asyncapi(), sort_keys=False, width=100)
    if README.is_file() and _BEGIN in README.read_text():
        written[README] = _readme(README.read_text())
    return written


def write() -> list[Path]:
    """Write the files that differ; returns them."""
    changed = drift()
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files()[path])
    return changed


def drift() -> list[Path]:
    """The files that are not what the contracts say."""
    return [path for path, content in files().items() if not path.is_file() or path.read_text() != content]


def json_schema(topic: Topic) -> dict[str, Any]:
    """The JSON Schema of a topic's payload; it stands alone, without references outside itself."""
    return _schema_of(topic.payload) | {"$id": f"{_ID}:{topic.name}:v1"}


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI document of the whole system, requests included."""
    models = [topic.payload for topic in TOPICS] + _request_models()
    _, definitions = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(models)],
        ref_template="#/components/schemas/{model}",
    )
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    for topic in TOPICS:
        key = _camel(topic.name)
        messages[key] = _message(topic.name, topic.payload, topic.summary) | {
            "headers": {"$ref": "#/components/schemas/CloudEventHeaders"}
        }
        channels[key] = {
            "address": topic.address,
            "title": topic.name,
            "description": f"{topic.summary}. Kept in the stream {topic.stream}.",
            "messages": {key: {"$ref": f"#/components/messages/{key}"}},
        }
        if topic.keys:
            channels[key]["parameters"] = {
                name: {"description": f"the payload's {name} as a subject token"} for name in topic.keys
            }
        operations[f"publish{_title(key)}"] = _operation("send", key, topic.publishers, topic.summary)
        if topic.consumers:
            operations[f"read{_title(key)}"] = _operation(
                "receive", key, tuple(topic.consumers), topic.summary
            )
    for verb in VERBS:
        key = _camel(f"svc.{verb.service}.{verb.name}")
        parts = {"Request": (verb.request,), "Reply": (verb.reply, RequestRefused)}
        for part, kinds in parts.items():
            for kind in kinds:
                messages[kind.__name__] = _message(kind.__name__, kind, (kind.__doc__ or "").split("\n")[0])
            channels[f"{key}{part}"] = {
                "address": verb.subject if part == "Request" else None,
                "description": verb.summary,
                "messages": {k.__name__: {"$ref": f"#/components/messages/{k.__name__}"} for k in kinds},
            }
        operations[key] = {
            "action": "receive",
            "channel": {"$ref": f"#/channels/{key}Request"},
            "summary": verb.summary,
            "tags": [{"name": verb.service}],
            "reply": {
                "address": {"location": "$message.header#/reply"},
                "channel": {"$ref": f"#/channels/{key}Reply"},
            },
        }
    return {
        "asyncapi": "3.1.0",
        "id": "urn:stoker",
        "info": {
            "title": "Stoker",
            "version": "1.0.0",
            "description": "Messages between Stoker's services, and the decision stream for everybody else. "
            "CloudEvents 1.0 in binary mode over NATS JetStream. Within v1 contracts only gain fields "
            "with defaults.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"nats": {"host": "localhost:4222", "protocol": "nats"}},
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": messages,
            "schemas": {"CloudEventHeaders": _ce_headers(), **definitions.get("$defs", {})},
        },
    }


def topic_table() -> str:
    """The topic table as Markdown."""
    rows = ["| subject | payload | stream | from | to |", "|---|---|---|---|---|"]
    for topic in TOPICS:
        to = ", ".join(
            name if delivery is Delivery.EVERY else f"{name} (newest)"
            for name, delivery in topic.consumers.items()
        )
        rows.append(
            f"| `{topic.address}` | {topic.summary} | {topic.stream} | {_listed(topic.publishers)} | "
            f"{to or 'anyone'} |"
        )
    rows.append(
        f"| `{ROOT}.dlq.{{stream}}.{{consumer}}` | parked messages as they came | DLQ | any | operators |"
    )
    for verb in VERBS:
        rows.append(f"| `{verb.subject}` | {verb.summary} | – | anyone | {verb.service} |")
    return "\n".join(rows)


def _readme(text: str) -> str:
    before, rest = text.split(_BEGIN, 1)
    after = rest.split(_END, 1)[1]
    return f"{before}{_BEGIN}\n{topic_table()}\n{_END}{after}"


def _request_models() -> list[type[BaseModel]]:
    found: dict[type[BaseModel], None] = {}
    for verb in VERBS:
        found[verb.request] = None
        found[verb.reply] = None
    found[RequestRefused] = None
    return list(found)


def _schema_of(model: type[BaseModel]) -> dict[str, Any]:
    return {"$schema": _DIALECT, "$id": f"{_ID}:{model.__name__}:v1"} | model.model_json_schema()


def _message(name: str, payload: type[BaseModel], summary: str) -> dict[str, Any]:
    return {
        "name": name,
        "summary": summary,
        "contentType": "application/json",
        "payload": {"$ref": f"#/components/schemas/{payload.__name__}"},
    }


def _operation(action: str, channel: str, services: Iterable[str], summary: str) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
        "tags": [{"name": service} for service in services],
    }


def _ce_headers() -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            name: {"type": "string", "description": text} for name, (text, _) in _CE_HEADERS.items()
        },
        "required": [name for name, (_, required) in _CE_HEADERS.items() if required],
    }


def _camel(name: str) -> str:
    first, *rest = name.split(".")
    return first + "".join(_title(part) for part in rest)


def _title(word: str) -> str:
    return word[:1].upper() + word[1:]


def _listed(names: Iterable[str]) -> str:
    names = tuple(names)
    return "any service" if len(names) > 3 else ", ".join(names)


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
