"""From operation that does not identify a pair to the sweep that does, on a simulated fleet."""

import pytest
from simulated_telemetry import TRUTH, WRONG, Loop, declared, fleet

from schemas.fleet import Objective, Server, ServiceClass
from schemas.parameters import CalibrationProposed, Health
from services.tuner.core import step


def flat_loop() -> Loop:
    """A pair that one operating point does not identify, and that a declared server uses."""
    loop = Loop(
        fleet([(0.0, 1.0)], shape="fixed", replicas=2, input_tokens=300.0, output_tokens=100.0), prior=WRONG
    )
    with_server = declared(WRONG).model_copy(
        update={
            "revision": "2",
            "service_classes": (ServiceClass(name="c", priority=1, objectives=(Objective(model="m"),)),),
            "servers": (Server(name="s", model="m", service_class="c"),),
        }
    )
    loop.state, _ = step(loop.state, (), with_server, 1e9, loop.setup)
    return loop


def proposals(loop: Loop, cycles: int) -> list[CalibrationProposed]:
    found = []
    for _ in range(cycles):
        window = loop.scraper.next_window()
        loop.state, outputs = step(loop.state, [window], None, window.window_end_s, loop.setup)
        found.extend(outputs.proposals)
        loop.in_force = outputs.parameters[0] if outputs.parameters else loop.in_force
    return found


def test_a_pair_that_operation_does_not_identify_gets_one_proposal_and_its_sweep_identifies_it() -> None:
    loop = flat_loop()
    (proposed,) = proposals(loop, 20)
    assert loop.in_force is not None and loop.in_force.health is Health.LEARNING
    assert (proposed.model, proposed.accelerator, len(proposed.points)) == ("m", "H100", 4)
    assert "learning" in proposed.reason

    simulated = loop.scraper.fleet
    users = simulated.servers["s"].requests_total
    ends_s = simulated.calibrate(proposed.model, proposed.accelerator, proposed.points)
    assert simulated.free["H100"] == 8 - 2 - 1
    assert proposals(loop, 25) == []
    assert simulated.now_s > ends_s and simulated.free["H100"] == 6
    (measured,) = simulated.calibrations
    assert [replica.replica for replica in measured.replicas] == [f"point {k}" for k in (1, 2, 3, 4)]
    # Users' requests are counted where they were served, and none of the sweep's is among them.
    assert simulated.servers["s"].requests_total - users == pytest.approx(25 * 60, rel=0.15)

    loop.state, outputs = step(loop.state, [measured], None, simulated.now_s, loop.setup)
    (learned,) = outputs.parameters
    assert learned.health is Health.IDENTIFIED
    # Four points short of the knee, and so without a queue.
    assert all((replica.waiting or 0.0) < 6.4 for replica in measured.replicas)
    # Of some hundred requests each; the prior was off by 20 to 40 %.
    assert learned.values == pytest.approx(TRUTH, rel=0.13)


def test_nothing_is_proposed_for_a_pair_that_no_declared_server_may_use() -> None:
    loop = Loop(fleet([(0.0, 1.0)], shape="fixed"), prior=WRONG)
    assert proposals(loop, 12) == []
