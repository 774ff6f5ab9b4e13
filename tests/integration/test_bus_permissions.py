"""What is deployed on a real server: each user may do all that it must, and nothing else."""

import asyncio
import json
import os
import signal
import sys
import time
from itertools import product
from pathlib import Path

import pytest
import trustme
from echo import Echo, chassis_of, sent, until, window
from guarded import DEPLOYED, Guarded, apply, denied, guarded, kept, new_key, trusting
from scenario_of_users import Users

from schemas.decision import DecisionMade
from schemas.subjects import PARTITIONS
from schemas.topics import TOPICS, VERBS, Delivery, Stream
from services.doctor import examine
from services.runtime.bus import Bus
from services.runtime.envelope import Wire, decode
from services.runtime.errors import Fatal, Reject, Retry
from services.runtime.permissions import OPERATOR, READER, files, users
from services.runtime.topology import topology

SERVICES = tuple(user for user in users() if user not in (OPERATOR, READER))
BUCKETS = ("SNAPSHOTS", "LEASES")
STREAMS = (*(stream.value for stream in Stream), *(f"KV_{bucket}" for bucket in BUCKETS))


def test_the_deployed_configuration_is_what_the_topic_table_says():
    for name, text in files().items():
        assert (DEPLOYED / name).read_text() == text, name


# The whole matrix. What is expected is said here once more, from the table alone.


def own_durables(service: str) -> set[tuple[str, str]]:
    partitioned = service in ("tuner", "predictor")
    names = [f"{service}-{number}" for number in range(PARTITIONS)] if partitioned else [service]
    streams = {"TELEMETRY"} if partitioned else {t.stream for t in TOPICS if service in t.consumers}
    return {(str(stream), name) for stream, name in product(streams, names)}


def readable(service: str) -> dict[str, list[str]]:
    """By stream, what a service may make a consumer for."""
    found: dict[str, list[str]] = {f"KV_{b}": [f"$KV.{b}.{service}.>"] for b in BUCKETS}
    for topic in TOPICS:
        if topic.consumers.get(service) is Delivery.NEWEST or service in topic.publishers:
            found.setdefault(topic.stream.value, []).append(topic.filter)
    return found


def publishes() -> dict[str, set[str]]:
    """Every subject that is tried, and the services that may publish there."""
    tried: dict[str, set[str]] = {"elsewhere": set(), "stoker.v1.unknown.x": set()}
    for topic in TOPICS:
        subject = topic.filter.replace("*", "x")
        tried[subject] = set(topic.publishers) - {OPERATOR}
        tried[f"{subject}.more"] = set()
    for stream, service in product(STREAMS, SERVICES):
        may = {str(t.stream) for t in TOPICS if service in t.consumers}
        tried[f"stoker.v1.dlq.{stream}.{service}"] = {service} if stream in may else set()
    answering = {verb.service for verb in VERBS}
    for user in users():
        tried[f"_INBOX.{user}.x"] = answering if user == OPERATOR else set()
    for verb in VERBS:
        tried[verb.subject] = set()
    for bucket, owner in product(BUCKETS, SERVICES):
        for key in ("active", "17.x"):
            tried[f"$KV.{bucket}.{owner}.{key}"] = {owner}
            tried[f"$JS.API.DIRECT.GET.KV_{bucket}.$KV.{bucket}.{owner}.{key}"] = {owner}
        tried[f"$KV.{bucket}.{owner}"] = set()
    tried |= of_streams() | of_consumers()
    for api in ("INFO", "STREAM.NAMES", "STREAM.LIST", "SERVER.REMOVE", "META.LEADER.STEPDOWN"):
        tried[f"$JS.API.{api}"] = set()
    for service in SERVICES:
        tried[f"$SRV.PING.stoker-{service}"] = set()
    for subject in ("$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.PING.CONNZ", "$SRV.PING"):
        tried[subject] = set()
    return tried


def of_streams() -> dict[str, set[str]]:
    tried: dict[str, set[str]] = {}
    verbs = ("CREATE", "UPDATE", "DELETE", "PURGE", "MSG.GET", "MSG.DELETE", "SNAPSHOT", "RESTORE")
    for verb, stream in product(verbs, (*STREAMS, "NEW")):
        tried[f"$JS.API.STREAM.{verb}.{stream}"] = set()
    for stream in STREAMS:
        follows = {"tuner", "predictor"} if stream == "STATE" else set()
        tried[f"$JS.API.STREAM.INFO.{stream}"] = set(SERVICES) if stream.startswith("KV_") else follows
        tried[f"$JS.API.DIRECT.GET.{stream}"] = set()
        tried[f"$JS.API.DIRECT.GET.{stream}.stoker.v1.plan.issued"] = set()
        for verb in ("NAMES", "LIST"):
            tried[f"$JS.API.CONSUMER.{verb}.{stream}"] = set()
    return tried


def of_consumers() -> dict[str, set[str]]:
    tried: dict[str, set[str]] = {}
    durable = {(spec.stream, spec.name) for spec in topology().consumers}
    filters = [(t.stream.value, t.filter) for t in TOPICS]
    filters += [(f"KV_{bucket}", f"$KV.{bucket}.{owner}.>") for bucket, owner in product(BUCKETS, SERVICES)]
    for stream, name in [*sorted(durable), *((stream, "made-by-itself") for stream in STREAMS)]:
        of, own = f"{stream}.{name}", {s for s in SERVICES if (stream, name) in own_durables(s)}
        makers = set() if (stream, name) in durable else {s for s in SERVICES if stream in readable(s)}
        tried[f"$JS.API.CONSUMER.INFO.{of}"] = own
        tried[f"$JS.API.CONSUMER.MSG.NEXT.{of}"] = own | makers
        tried[f"$JS.ACK.{of}.1.1.1.1.1"] = own
        tried[f"$JS.API.CONSUMER.DELETE.{of}"] = makers
        for verb in ("CREATE", "DURABLE.CREATE", "PAUSE", "RESET", "LEADER.STEPDOWN", "UNPIN"):
            tried[f"$JS.API.CONSUMER.{verb}.{of}"] = set()
        for kept_in, subject in filters:
            if kept_in == stream:
                may = {s for s in makers if subject in readable(s).get(stream, ())}
                tried[f"$JS.API.CONSUMER.CREATE.{of}.{subject}"] = may
        for subject in (">", "stoker.>", "stoker.v1.*.*", "stoker.v1.*.*.*", "$KV.>", f"$KV.{stream}.*.>"):
            tried[f"$JS.API.CONSUMER.CREATE.{of}.{subject}"] = set()
    return tried


def subscriptions() -> dict[str, set[str]]:
    tried: dict[str, set[str]] = {
        s: set() for s in (">", "*", "stoker.>", "_INBOX.>", "$JS.>", "$KV.>", "$SYS.>")
    }
    for topic in TOPICS:
        tried[topic.filter] = {READER} if topic.stream is Stream.DECISIONS else set()
    for user in users():
        tried[f"_INBOX.{user}.>"] = {user} - {OPERATOR, READER}
    for verb in VERBS:
        tried[verb.subject] = {verb.service}
    for verb, service in product(("PING", "INFO", "STATS"), SERVICES):
        tried[f"$SRV.{verb}"] = set(SERVICES)
        tried[f"$SRV.{verb}.stoker-{service}"] = tried[f"$SRV.{verb}.stoker-{service}.x"] = {service}
    return tried


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with guarded(tmp_path / "nats", monkeypatch) as started:
        yield started


@pytest.mark.parametrize("user", (*SERVICES, READER))
async def test_a_user_may_use_exactly_its_own_subjects_and_requests(server: Guarded, user: str):
    published, subscribed = publishes(), subscriptions()
    lines = [f"PUB {subject} 0\r\n\r\n" for subject in published]
    lines += [f"SUB {subject} {k}\r\n" for k, subject in enumerate(subscribed)]
    allowed = [user in may for may in (*published.values(), *subscribed.values())]
    refused = await denied(server, user, lines)
    wrong = [line for line, no, may in zip(lines, refused, allowed, strict=True) if no == may]
    assert wrong == []
    # A reader hears decisions, what was done and what failed, and alerts, and says nothing.
    assert sum(allowed) == 4 if user == READER else sum(allowed) > 20
    assert len(lines) > 1500


async def test_people_may_do_what_their_commands_need_and_nothing_in_the_name_of_the_server(server: Guarded):
    fine = [
        "PUB stoker.v1.plan.issued 0",
        "PUB $JS.API.STREAM.INFO.STATE 0",
        "PUB stoker.v1.svc.tuner.status 0",
    ]
    foul = [
        "PUB $KV.LEASES.actuator.active 0",
        "PUB $SYS.REQ.SERVER.PING 0",
        "PUB $JS.ACK.STATE.optimizer.1 0",
    ]
    lines = [f"{line}\r\n\r\n" for line in (*fine, *foul)]
    lines += [f"SUB {subject} 1\r\n" for subject in ("stoker.v1.>", "_INBOX.cli.>", "_INBOX.tuner.>", ">")]
    expected = [False] * 3 + [True] * 3 + [False, False, True, True]
    assert await denied(server, OPERATOR, lines) == expected


async def test_a_consumer_reads_what_its_request_names_and_no_more(server: Guarded):
    bus = await Bus.connect(server.settings("tuner"), "tuner")
    may = "stoker.v1.fleet.declared"
    subject = f"$JS.API.CONSUMER.CREATE.STATE.mine.{may}"
    for filters in (
        {"filter_subjects": [may, "stoker.v1.plan.issued"]},
        {"filter_subject": "stoker.v1.plan.issued"},
    ):
        body = {"stream_name": "STATE", "config": {"name": "mine", "ack_policy": "none"} | filters}
        answer = json.loads(await bus.request(subject, json.dumps(body).encode()))
        assert "error" in answer, answer
    with pytest.raises(Retry, match="no answer"):
        await bus.request("$JS.API.CONSUMER.CREATE.STATE.mine.stoker.v1.plan.issued", b"{}", timeout_s=0.5)
    assert any("stoker.v1.plan.issued" in text for text in bus.refusals)
    await bus.close()


async def test_what_the_server_can_be_made_to_say_under_another_s_subject_is_no_message(server: Guarded):
    """NATS does not look at where an answer is to go, so a user can have one stored where it may not publish."""
    bus = await Bus.connect(server.settings("tuner"), "tuner")
    subject = "stoker.v1.decision.made.x"
    await bus._client.publish("$JS.API.STREAM.INFO.STATE", b"", reply=subject)
    people = await Bus.connect(server.settings(OPERATOR), OPERATOR)
    await kept(people, "DECISIONS", subject)
    (raw,) = await people.everything("DECISIONS", [subject])
    with pytest.raises(Reject, match="ce-specversion"):
        decode(raw)
    await bus.close()
    await people.close()


@pytest.mark.parametrize("by", ["password", "nkey"])
async def test_an_outside_reader_follows_decisions_with_the_script_of_the_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
):
    repository = DEPLOYED.parents[1]
    example = repository / "schemas" / "examples" / "decision.made" / "v1" / "full.json"
    made = DecisionMade.model_validate_json(example.read_text())
    async with guarded(tmp_path / "nats", monkeypatch, by=by) as server:
        held = server.credentials[READER]
        url, seed = server.url, [str(held["nkey_seed_file"])] if by == "nkey" else []
        if by == "password":
            url = url.replace("://", f"://{READER}:{held['password']}@")
        script = [repository / "docs" / "follow_decisions.py", url]
        script += [repository / "schemas" / "json" / "decision.made.v1.json", "3", *seed]
        following = await asyncio.create_subprocess_exec(sys.executable, *script, stdout=-1, stderr=-1)
        said = asyncio.create_task(following.communicate())
        actuator = await Bus.connect(server.settings("actuator"), "actuator")
        number = 0
        deadline = time.monotonic() + 60
        while not said.done():
            assert time.monotonic() < deadline, "the reader hears nothing"
            number += 1
            await actuator.publish(sent(made.model_copy(update={"decided_at_s": float(number)})))
            await asyncio.wait([said], timeout=0.1)
        await actuator.close()
    lines, complained = said.result()
    assert following.returncode == 0, complained.decode()
    assert [line.split()[0] for line in lines.decode().splitlines()] == [made.server] * 3


async def test_doctor_says_what_the_bus_denies_it_beside_what_else_it_found(
    server: Guarded, monkeypatch: pytest.MonkeyPatch
):
    held = server.credentials[READER]
    for name, value in {"URL": server.url, "USER": held["user"], "PASSWORD": held["password"]}.items():
        monkeypatch.setenv(f"STOKER_BUS__{name}", str(value))
    monkeypatch.setenv("STOKER_BUS__PUBLISH_TIMEOUT_S", "0.3")
    found = {one.what: one for one in await examine()}
    assert found["python"].ok and not found["bus"].ok
    assert "verifying streams and consumers" in found["bus"].detail


# Everything that each must do works.


async def test_instances_of_a_partitioned_service_share_restore_park_and_answer_with_its_rights(
    server: Guarded,
):
    bus = server.credentials["predictor"]
    made = [chassis_of(server, Echo(), name, lease_s=1.5, bus=bus) for name in ("one", "two")]
    tasks = [asyncio.create_task(chassis.run()) for chassis in made]
    await until(lambda: [len(c.held) for c in made] == [PARTITIONS // 2] * 2)
    collector = await Bus.connect(server.settings("collector"), "collector")
    await collector.publish(sent(window(1.0)))
    broken = sent(window(2.0))
    await collector.publish(Wire(broken.subject, b"{", broken.headers, "broken", broken.stream))
    people = await Bus.connect(server.settings(OPERATOR), OPERATOR)
    await kept(people, "DLQ", "stoker.v1.dlq.TELEMETRY.predictor")
    await kept(people, "STATE", "stoker.v1.forecast.issued.*")
    await kept(people, "KV_SNAPSHOTS", "$KV.SNAPSHOTS.predictor.>")
    assert await people.request("stoker.v1.svc.predictor.status", b"{}")
    assert [c.reasons() for c in made] == [[], []]
    made[0].stop()
    await until(lambda: len(made[1].held) == PARTITIONS)
    made[1].stop()
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    assert collector.refusals == people.refusals == ()
    await collector.close()
    await people.close()


async def has_lost(server: Guarded, user: str, subject: str) -> bool:
    """Whether a user may no longer publish to a subject; not while it is thrown out."""
    try:
        return await denied(server, user, [f"PUB {subject} 0\r\n\r\n"]) == [True]
    except (AssertionError, OSError):
        return False


async def test_a_denied_publish_makes_a_service_not_ready_with_the_reason_until_it_is_allowed(
    server: Guarded, tmp_path: Path
):
    rights = tmp_path / "nats" / "permissions.conf"
    full = rights.read_text()
    rights.write_text(full.replace('      "stoker.v1.forecast.issued.*"\n', ""))
    os.kill(server.pid, signal.SIGHUP)
    # Whoever is connected while the server takes this up is thrown out.
    deadline = time.monotonic() + 20
    while not await has_lost(server, "predictor", "stoker.v1.forecast.issued.s"):
        assert time.monotonic() < deadline, "the rights are as before"
    chassis = chassis_of(server, Echo(), lease_s=1.5, bus=server.credentials["predictor"])
    task = asyncio.create_task(chassis.run())
    await until(lambda: len(chassis.held) == PARTITIONS)
    collector = await Bus.connect(server.settings("collector"), "collector")
    await collector.publish(sent(window(1.0)))
    await until(chassis.reasons)
    (reason,) = chassis.reasons()
    assert (
        reason.startswith("denied: ") and "publish to" in reason and "stoker.v1.forecast.issued.s" in reason
    )
    rights.write_text(full)
    os.kill(server.pid, signal.SIGHUP)
    await until(lambda: not chassis.reasons())
    chassis.stop()
    await asyncio.wait_for(task, 60)
    await collector.close()


# TLS and nkeys.


async def test_every_service_runs_on_tls_under_a_key_of_its_own_and_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    authority, other = trustme.CA(), trustme.CA()
    held = authority.issue_cert("127.0.0.1")
    files_of = {"cert": held.cert_chain_pems[0], "key": held.private_key_pem}
    for name, blob in files_of.items():
        blob.write_to_path(str(tmp_path / f"server-{name}.pem"))
    ca = trusting(authority, tmp_path)
    ours, theirs = tmp_path / "ours.pem", tmp_path / "theirs.pem"
    authority.issue_cert("stoker").private_key_and_cert_chain_pem.write_to_path(str(ours))
    other.issue_cert("stoker").private_key_and_cert_chain_pem.write_to_path(str(theirs))
    tls = f'tls {{ cert_file: "{tmp_path}/server-cert.pem", key_file: "{tmp_path}/server-key.pem"'
    tls += f', ca_file: "{ca}", verify: true }}'
    async with guarded(tmp_path / "nats", monkeypatch, by="nkey", extra_config=tls) as server:
        right = {"ca_file": ca, "certificate_file": ours}
        await apply(server, **right)
        stranger = tmp_path / "stranger.nk"
        new_key(stranger)
        (tmp_path / "other").mkdir()
        refused = {
            "no certificate": {"ca_file": ca},
            "a certificate of another authority": {"ca_file": ca, "certificate_file": theirs},
            "a server that another authority vouches for": right
            | {"ca_file": trusting(other, tmp_path / "other")},
            "no key": right | {"nkey_seed_file": None},
            "a key that nobody has": right | {"nkey_seed_file": stranger},
        }
        for what, settings in refused.items():
            with pytest.raises(Fatal, match=r"refused the credentials|no NATS server"):
                await Bus.connect(server.settings("tuner", connect_timeout_s=1.0, **settings), "tuner")
                pytest.fail(f"connected with {what}")
        await Users(server, tmp_path, right).decide()
