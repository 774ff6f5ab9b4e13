"""Cutting a broadcast of servers into blocks."""

import numpy as np

from services.perfmodel.blocks import BLOCK_ENTRIES, blocks
from services.perfmodel.law import Limits, Workload
from services.perfmodel.laws.three_parameter import ThreeParameterLaw
from services.perfmodel.queueing import ServerModel, Targets
from services.perfmodel.queueing_models.birth_death import BirthDeathModel

PARAMETERS = np.array([0.008, 3.3e-5, 3.3e-7])


def test_blocks_hold_every_element_once_and_no_more_entries_than_allowed() -> None:
    rng = np.random.default_rng(5)
    batch = rng.integers(1, 1025, (700, 1)).astype(float)
    servers = ServerModel(ThreeParameterLaw(), PARAMETERS, Workload(100.0, 10.0), Limits(batch, 5))
    seen = []
    for block in blocks(servers, (700, 3)):
        own = np.asarray(block.servers.limits.max_batch)[block.rows]
        assert (own == np.broadcast_to(batch, (700, 3)).ravel()[block.elements]).all()
        assert own.max() * own.size <= BLOCK_ENTRIES
        seen.append(block.elements)
    assert len(seen) > 3
    assert (np.sort(np.concatenate(seen)) == np.arange(2100)).all()


def test_a_server_wider_than_a_block_is_a_block_of_its_own() -> None:
    wide = ServerModel(
        ThreeParameterLaw(),
        PARAMETERS,
        Workload(100.0, 10.0),
        Limits(np.array([BLOCK_ENTRIES + 1.0, 2.0]), 0),
    )
    assert [block.elements.tolist() for block in blocks(wide, (2,))] == [[1], [0]]


def test_many_blocks_size_as_each_server_alone() -> None:
    rng = np.random.default_rng(6)
    batch = rng.integers(1, 513, 1500).astype(float)
    targets = Targets(rng.uniform(0.1, 1, 1500), rng.uniform(0.01, 0.1, 1500)).spread((1500,))
    model, workload = BirthDeathModel(), Workload(512.0, 128.0)
    together = model.max_rate(
        ServerModel(ThreeParameterLaw(), PARAMETERS, workload, Limits(batch, 20)), targets
    )
    for index in range(0, 1500, 75):
        one = ServerModel(ThreeParameterLaw(), PARAMETERS, workload, Limits(batch[index], 20))
        alone = model.max_rate(one, targets.take(np.array([index])))
        np.testing.assert_allclose(together.max_rate_rps[index], alone.max_rate_rps[0], rtol=1e-8)


def test_no_servers_are_no_answers() -> None:
    none = ServerModel(ThreeParameterLaw(), np.empty((0, 3)), Workload(512.0, 128.0), Limits(8, 20))
    model = BirthDeathModel()
    assert model.analyze(none, 1.0).ttft_s.mean.shape == (0,)
    assert model.max_rate(none, Targets(1.0)).feasible.shape == (0,)
    assert model.concurrency(none, Targets(1.0)).shape == (0,)
